"""What an architecture is worth on your images: data, the elastic supernet, calibration, extraction, export."""

from hanax._files import InUseError
from hanax.supernet._augment import Augmentation, augment
from hanax.supernet._backend import keep_compiled_code, keep_freed_memory, release_freed_memory
from hanax.supernet._blocks import apply_block
from hanax.supernet._chain import (
    Params,
    backward_along,
    compile_chain,
    forward_with_tape,
    init_params,
    prepare,
    with_steps,
)
from hanax.supernet._depthwise import depthwise
from hanax.supernet._evaluate import Evaluator, slice_weights, supernet_fingerprint
from hanax.supernet._execution import Execution, choose_execution
from hanax.supernet._fake_quant import (
    Calibration,
    activation_range,
    activation_scale,
    kernel_scale,
    largest_value,
    learned_factor,
    learned_step_quantize,
    lsq_initial,
    quantize,
    quantize_activation,
    quantize_kernel,
    round_to_format,
)
from hanax.supernet._folded_net import FoldedNet, tensor_names, tensor_ranges
from hanax.supernet._image_files import load_images
from hanax.supernet._images import (
    DataError,
    ImageDataset,
    Split,
    images_from_arrays,
    normalise,
    resize,
    split_validation,
)
from hanax.supernet._masked import masked_logits
from hanax.supernet._native import NativeStatus, native_status
from hanax.supernet._ncnn import to_ncnn
from hanax.supernet._onnx import ExportMismatchError, check_onnx, run_onnx, to_onnx
from hanax.supernet._parallel import Parallel
from hanax.supernet._quantize_onnx import quantize_onnx, quantize_onnx_dynamically, to_qdq_onnx
from hanax.supernet._quantized_blocks import apply_quantized
from hanax.supernet._quantized_net import IntegerKernel, Levels, QuantizedNet
from hanax.supernet._racing import Outcome
from hanax.supernet._recipe import Phase, Recipe, n_steps, phases
from hanax.supernet._reconstruct import (
    RoundedNet,
    correct_biases,
    reconstruct,
    reestimate_norms,
    round_to_nearest,
)
from hanax.supernet._sensitivity import (
    PolicyEvaluator,
    PolicyScores,
    Sensitivities,
    Trace,
    hessian_traces,
    hutchinson_traces,
    kernel_layers,
    sensitivities,
    slot_layers,
)
from hanax.supernet._stablehlo import to_mlir, to_stablehlo
from hanax.supernet._static_net import StaticNet
from hanax.supernet._subnet import Subnet
from hanax.supernet._tflite import to_integer_tflite, to_tflite, to_tflite_int8
from hanax.supernet._train import DivergedError, load_supernet, train_quantized, train_subnet, train_supernet
from hanax.supernet._trie import SharedWork, shared_work
from hanax.supernet._weights import UncalibratedError, Weights, check_weights, fold_batch_norm, random_weights

__all__ = [
    "Augmentation",
    "Calibration",
    "DataError",
    "DivergedError",
    "Evaluator",
    "Execution",
    "ExportMismatchError",
    "FoldedNet",
    "ImageDataset",
    "InUseError",
    "IntegerKernel",
    "Levels",
    "NativeStatus",
    "Outcome",
    "Parallel",
    "Params",
    "Phase",
    "PolicyEvaluator",
    "PolicyScores",
    "QuantizedNet",
    "Recipe",
    "RoundedNet",
    "Sensitivities",
    "SharedWork",
    "Split",
    "StaticNet",
    "Subnet",
    "Trace",
    "UncalibratedError",
    "Weights",
    "activation_range",
    "activation_scale",
    "apply_block",
    "apply_quantized",
    "augment",
    "backward_along",
    "check_onnx",
    "check_weights",
    "choose_execution",
    "compile_chain",
    "correct_biases",
    "depthwise",
    "fold_batch_norm",
    "forward_with_tape",
    "hessian_traces",
    "hutchinson_traces",
    "images_from_arrays",
    "init_params",
    "keep_compiled_code",
    "keep_freed_memory",
    "kernel_layers",
    "kernel_scale",
    "largest_value",
    "learned_factor",
    "learned_step_quantize",
    "load_images",
    "load_supernet",
    "lsq_initial",
    "masked_logits",
    "n_steps",
    "native_status",
    "normalise",
    "phases",
    "prepare",
    "quantize",
    "quantize_activation",
    "quantize_kernel",
    "quantize_onnx",
    "quantize_onnx_dynamically",
    "random_weights",
    "reconstruct",
    "reestimate_norms",
    "release_freed_memory",
    "resize",
    "round_to_format",
    "round_to_nearest",
    "run_onnx",
    "sensitivities",
    "shared_work",
    "slice_weights",
    "slot_layers",
    "split_validation",
    "supernet_fingerprint",
    "tensor_names",
    "tensor_ranges",
    "to_integer_tflite",
    "to_mlir",
    "to_ncnn",
    "to_onnx",
    "to_qdq_onnx",
    "to_stablehlo",
    "to_tflite",
    "to_tflite_int8",
    "train_quantized",
    "train_subnet",
    "train_supernet",
    "with_steps",
]
