"""A tiny image segmenter in the format of MediaPipe's selfie_multiclass_256x256.tflite: 256² RGB of 0 … 1 in, a score
of each class out, softmax asked for in the metadata. Its one layer is a 1×1 convolution."""

from pathlib import Path

import flatbuffers
import numpy as np


def write_segmenter(path: Path, weights: np.ndarray, bias: np.ndarray, size: int = 256) -> Path:
    """Writes scores = weights · rgb + bias as a model with metadata.

    Args:
        weights: float [classes, 3].
        bias: float [classes].
    """
    from mediapipe.tasks.metadata import schema_py_generated as schema
    from mediapipe.tasks.python.metadata.metadata_writers import image_segmenter

    classes = len(bias)

    def tensor(name: str, shape: list, buffer: int) -> schema.TensorT:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
        return made

    def buffer(values: np.ndarray | None = None) -> schema.BufferT:
        made = schema.BufferT()
        if values is not None:
            made.data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
        return made

    convolution = schema.OperatorT()
    convolution.opcodeIndex, convolution.inputs, convolution.outputs = 0, [0, 1, 2], [3]
    convolution.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    convolution.builtinOptions = schema.Conv2DOptionsT()
    convolution.builtinOptions.strideH = convolution.builtinOptions.strideW = 1

    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("input", [1, size, size, 3], 0),
        tensor("weights", [classes, 1, 1, 3], 1),
        tensor("bias", [classes], 2),
        tensor("output", [1, size, size, classes], 0),
    ]
    graph.inputs, graph.outputs, graph.operators = [0], [3], [convolution]

    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = (schema.BuiltinOperator.CONV_2D,) * 2 + (1,)

    model = schema.ModelT()
    model.version, model.description = 3, "a test's segmenter"
    model.operatorCodes, model.subgraphs = [code], [graph]
    model.buffers = [buffer(), buffer(weights), buffer(bias)]

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    writer = image_segmenter.MetadataWriter.create(
        bytearray(builder.Output()),
        input_norm_mean=[0.0],
        input_norm_std=[255.0],
        activation=image_segmenter.Activation.SOFTMAX,
    )
    content, _ = writer.populate()
    path.write_bytes(content)
    return path
