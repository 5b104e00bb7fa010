"""What each figure of a report means, in a sentence or two: printed beside the numbers in every rendering."""

from __future__ import annotations

DEFINITIONS = {
    "TTFT": "time to first token: from the image bytes handed over until the first text is visible; the sum of "
    "preprocess, vision, (fusion), prefill and first decode.",
    "Steady": "after a warm-up with other images of the same shape. Every answer has an image and a prompt of its own, "
    "so no cache can serve it.",
    "Cold": "the first answer after loading, without warm-up, kept apart from the rest.",
    "Cached": "the same image and prompt again with the session's caches on: what a follow-up costs, not what a new "
    "image costs.",
    "Preprocess": "decode, resize and normalise the image; render and tokenise the prompt.",
    "Vision": "pixels to image embeddings; the connector is part of the vision graph.",
    "Fusion": "image embeddings and prompt through the model's fusion layers; only LLaVA-Mini has them.",
    "Prefill": "one pass of the decoder over the whole prompt, image tokens included.",
    "First decode": "from the prompt's logits to the first visible text: sampling and detokenisation.",
    "TPOT": "time per output token: from the first token to the last, divided by the number of tokens after the first.",
    "Decode": "1000 / median TPOT, in tokens per second; TTFT does not enter.",
    "Load": "from opening the bundle to ready for the first request, with the files in the system's cache and the "
    "engines chosen.",
    "Protocol": "the first answer (cold), a warm-up, then steady answers until both their number and their time are "
    "reached, the first steady input once more (it must give the same tokens and take as long), and one input several "
    "times with caches on (cached). Single stream: the next question follows the last answer. Offline: a batch job, "
    "which has its images from the beginning; a session answers one at a time, so they are answered one by one.",
    "Own cost": "what the bench itself takes: the share of the steady time that passes between two answers, such as "
    "making the next image, which is in no figure, and the CPU time of the process that samples memory, which runs "
    "beside the answers.",
    "Drift": "a trend of the steady answers by more than 5% from first to last, where the Mann-Kendall test gives it a "
    "chance below 1%. Growing memory is told by the same test.",
    "Percentiles": "with 95% intervals from order statistics, whatever the distribution. p50 needs 6 samples, p90 36, "
    "p95 72, p99 368; n/a stands where there are fewer.",
    "Peak RSS": "highest resident memory of the worker process and its children, sampled from another process. PSS "
    "divides shared pages among their users.",
    "GPU memory": "what the driver says the worker's processes hold; all use is the most in use on the GPUs by anyone "
    "less the least meanwhile. Of a Jetson, whose GPU shares the memory, it is the same of the whole system.",
    "Size": "bytes of all files of the bundle. Bits per weight count what is stored for each parameter, scales "
    "included.",
    "Accuracy": "share of answers that the scorer calls right, greedy decoding; of generated tasks those equal to the "
    "right one, lower-cased, stripped and without a final full stop. Interval: 95% Wilson score, which takes items as "
    "independent. Scorers with partial credit (VQA, ANLS) give the mean credit, with a bootstrap that resamples whole "
    "images; for flips an answer is right from one half on.",
    "Chance": "accuracy of the best guess that never looks at the image.",
    "Control": "accuracy with every image replaced by grey noise: what the questions alone give away.",
    "Delta": "accuracy less that of the baseline on the same items. Interval: 95% bootstrap that resamples whole "
    "images, with percentiles expanded as Student's t is wider than the normal distribution.",
    "Flips": "items that only one of the two gets right: lost (the baseline does) and gained (this one does). Changed "
    "answers count every difference, right or wrong.",
    "First token": "the distribution of the first answer token, image in the prompt, against the baseline's: how often "
    "the likeliest is the same, and the Kullback-Leibler divergence over the tokens that both rank among their first "
    "32, the others as one, which bounds that over all tokens from below.",
    "McNemar": "p-value of lost = gained; exact below 25 flips, mid-p from there. A large p does not show equality.",
    "Verdict": "non-inferior where the whole interval of the delta lies above minus the margin, worse where it lies "
    "below minus the margin, else undecided. Non-inferior does not mean equal.",
    "Detectable drop": "the smallest drop that so many items show with 80% power at 5% (Connor 1987), at the observed "
    "share of flips or 2%, whichever is larger.",
}

#: Where sensors were looked for.
ENERGY_DEFINITIONS = {
    "Energy": "of the steady answers, by the named sensor: differences of its counter, or power integrated by the "
    "trapezoidal rule, at the named rate. Only the named rails count; making the next image between two answers does "
    "not.",
    "Joules per image": "from the image bytes to the first text. Per token: each one after the first. Both need stages "
    "longer than two readings, else n/a stands. Per answer: both together.",
    "Net": "less the power of the idle machine, measured before the first bundle was loaded, over the same time; idle "
    "power holds what sampling costs.",
    "Throttled": "share of the readings during the steady answers in which the sensor gave a reason for held-back "
    "clocks.",
}

#: What only a study speaks of.
STUDY_DEFINITIONS = {
    "Unpruned": "the same export without a method. Every cell is paired with it on the same items, so a difference is "
    "what pruning did, not what the precision did.",
    "Tokens": "what is kept of an image, or of each of its tiles. A method that cannot make the count that was asked "
    "for, such as pool, which needs a square, makes the nearest that it can. Methods inside the decoder keep so many "
    "only behind the last layer where they drop some: pictures and fronts show the mean over all layers, which is what "
    "the decoder computes.",
    "Of full": "accuracy as a share of the unpruned model's.",
    "By turns": "a cell and the unpruned bundle answer the same questions by turns in one process; the ratio of their "
    "medians stands beside a cell's TTFT, which is that ratio times the TTFT of the unpruned bundle alone.",
    "Method": "what the method adds: the vision graph with it less the one without, called by turns on the same "
    "images in one process; median of the differences, with a 95% interval. Work that it spares the projector or "
    "the encoder counts, so that it may be negative. Of a method inside the decoder: its prefill less the unpruned "
    "one, by turns; what the layers behind it save counts. A dash stands where neither differs.",
    "Plain choices": "uniform and random at the same share of tokens. A method is better where the whole 95% interval "
    "of the paired difference lies above zero; many methods are compared, so one in forty may look better by chance. "
    "random is one draw, the same for every image.",
    "Pareto front": "the cells that no other one beats: none has as few tokens (or as short a time) and as many right "
    "answers, and is better in one of the two.",
}

#: What the report of a study defines.
STUDY_TERMS = (
    *("Accuracy", "Delta", "Flips", "McNemar", "Verdict", "TTFT", "Steady", "Vision", "Prefill"),
    *STUDY_DEFINITIONS,
)


def study_definitions() -> dict[str, str]:
    """The definitions that stand in the report of a study."""
    known = {**DEFINITIONS, **STUDY_DEFINITIONS}
    return {term: known[term] for term in STUDY_TERMS}
