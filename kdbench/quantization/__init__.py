"""Int8 and other precisions of ONNX files: the parts of `kdbench quantize`."""
