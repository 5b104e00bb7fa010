"""TensorRT around its engines: the libraries, CUDA, building, and the cards that say what an engine was built for."""
