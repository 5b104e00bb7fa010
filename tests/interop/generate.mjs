// Answers questions about one image with transformers.js, from a bundle folder as EdgeVLM wrote it: no options, no network.
// In: node generate.mjs BUNDLE IMAGE SIDE MAX_NEW_TOKENS QUESTION..., IMAGE holding SIDE x SIDE x 3 bytes.
// Out: one JSON object a question: the prompt's ids and the new ids.
import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { AutoModelForImageTextToText, AutoProcessor, RawImage, env } from "@huggingface/transformers";

const [bundle, image, side, maxNewTokens, ...questions] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(bundle));
const name = basename(resolve(bundle));

const processor = await AutoProcessor.from_pretrained(name);
const model = await AutoModelForImageTextToText.from_pretrained(name);
const pixels = new RawImage(new Uint8ClampedArray(readFileSync(image)), Number(side), Number(side), 3);
for (const question of questions) {
  const messages = [{ role: "user", content: `<image>\n${question}` }];
  const prompt = processor.apply_chat_template(messages, { add_generation_prompt: true });
  const inputs = await processor(pixels, prompt, { add_special_tokens: false });
  const output = await model.generate({ ...inputs, max_new_tokens: Number(maxNewTokens) });
  const ids = Array.from(output.data, Number);
  const length = inputs.input_ids.dims[1];
  console.log(JSON.stringify({ prompt: ids.slice(0, length), generated: ids.slice(length) }));
}
