"""Encode one image with llama.cpp's own image support; a process of its own, because llama.cpp aborts on surprises.

Arguments: text model, mmproj, a `.npy` image uint8 `[H, W, 3]`, and the `.npy` to write: embeddings `[N, H]` of all
image chunks in order.
"""

import ctypes
import sys

import llama_cpp
import numpy as np
from llama_cpp import mtmd_cpp as mtmd


def main(model_path: str, mmproj_path: str, image_path: str, out_path: str) -> None:
    """Write the embeddings."""
    image = np.ascontiguousarray(np.load(image_path, allow_pickle=False))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_load_model_from_file(model_path.encode(), llama_cpp.llama_model_default_params())
    params = mtmd.mtmd_context_params_default()
    params.use_gpu, params.n_threads, params.warmup = False, 1, False
    context = mtmd.mtmd_init_from_file(mmproj_path.encode(), model, params)
    assert context, "mtmd refuses the mmproj"
    data = image.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    bitmap = mtmd.mtmd_bitmap_init(image.shape[1], image.shape[0], data)
    marker = mtmd.mtmd_default_marker()
    text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
    chunks = mtmd.mtmd_input_chunks_init()
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(text), bitmaps, 1) == 0
    width = llama_cpp.llama_model_n_embd(model)
    rows = []
    for index in range(mtmd.mtmd_input_chunks_size(chunks)):
        chunk = mtmd.mtmd_input_chunks_get(chunks, index)
        if mtmd.mtmd_input_chunk_get_type(chunk) != mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
            continue
        assert mtmd.mtmd_encode_chunk(context, chunk) == 0
        count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        output = mtmd.mtmd_get_output_embd(context)
        rows.append(np.ctypeslib.as_array(output, (count, width)).copy())
    np.save(out_path, np.concatenate(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
