"""The agent: one file, standard library only, that runs models on the machine it stands on and reports their times.

Start it with ``python -u agent.py --runtime onnxruntime --threads 1`` and speak JSON lines: one request per line on
stdin, one answer per line on stdout, in order. Everything else that the process prints goes to stderr.

    {"id": 1, "op": "info"}  ->  {"id": 1, "result": {...}}  or  {"id": 1, "error": "what went wrong"}

==========  ====================================  =============================================================
op          fields                                result
==========  ====================================  =============================================================
``info``                                          runtime, version, threads, processor, cores, ...
``put``     sha256, base64                        the model's bytes are here, and are those of the checksum
``load``    sha256, input_shape, seed             the model is compiled and has run once on random normal input
``run``     sha256, base64, shape                 the model's outputs for this float32 input
``bench``   sha256, inner_ms, inner_runs          one round: nanoseconds of every run, wall and CPU time of all
``stages``  sha256, inner_ms, inner_runs,         the same from a byte image to the best class: nanoseconds of
            image_size                            preprocessing, input copy, computing, post-processing of every run
``count``   sha256, runs                          instructions of so many inferences together, on emulated devices
``stats``                                         peak memory of the process, load of the machine, and what other
                                                  processes took of it since the last ``stats``
``unload``  sha256                                the model is forgotten
``quit``                                          the agent ends; the end of stdin does the same
==========  ====================================  =============================================================

A runtime is imported by the first ``load``; ``info`` and ``put`` work without it.
"""

from __future__ import annotations

import argparse
import base64
import gc
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

PROTOCOL = 2


class Refusal(Exception):
    """A request that cannot be met as asked; the text is the answer."""


# ---- runtimes --------------------------------------------------------------------------------------------------------


class Model(NamedTuple):
    """A compiled model as three steps; `run` alone is what a benchmark of the computation times.

    Attributes:
        feed: An image, float32 (batch, channels, height, width), as the runtime takes it: the input copy.
        run: What the runtime computes from it, finished when it returns.
        fetch: That, as a list of arrays.
    """

    feed: Callable[[Any], Any]
    run: Callable[[Any], Any]
    fetch: Callable[[Any], Sequence[Any]]


class Runtime(Protocol):
    """Executes models with a fixed number of threads.

    Attributes:
        package: What is imported, by Python or by node; absent means that the runtime is missing.
        distribution: Whose version is the runtime's.
    """

    package: str
    distribution: str

    def __init__(self, threads: int) -> None: ...

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        """Compile the model file for inputs of this shape."""


class OnnxRuntime:
    """ONNX models on onnxruntime's CPU provider; `threads` threads inside an operator, operators one after another.

    Threads do not spin while they wait, so that the process's CPU time is work.
    """

    package = "onnxruntime"
    distribution = "onnxruntime"

    def __init__(self, threads: int) -> None:
        self.runtime = importlib.import_module("onnxruntime")
        self.options = self.runtime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1
        self.options.execution_mode = self.runtime.ExecutionMode.ORT_SEQUENTIAL
        self.options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.options.add_session_config_entry("session.inter_op.allow_spinning", "0")

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        session = self.runtime.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
        names = [argument.name for argument in session.get_inputs()]
        if len(names) != 1:
            raise Refusal(f"the model has inputs {names}; expected exactly one")
        return Model(lambda image: {names[0]: image}, lambda feed: session.run(None, feed), list)


class Xla:
    """Serialised `jax.export` artefacts, compiled by XLA for the CPU when they first run.

    One thread means: XLA's thread pool has one thread (NPROC), and kernels are not split over it, so that everything
    runs on the calling thread; the process's other threads sleep. With more threads the pool has that many. The
    variables must stand in the environment before JAX starts, which is why a process has one thread count for life.
    """

    package = "jax"
    distribution = "jaxlib"

    def __init__(self, threads: int) -> None:
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["NPROC"] = os.environ["PJRT_NPROC"] = str(threads)
        if threads == 1:
            flags = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
        self.jax = importlib.import_module("jax")
        self.export = importlib.import_module("jax.export")

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        """The function's first call compiles."""
        call = self.jax.jit(self.export.deserialize(bytearray(model)).call)
        return Model(self.jax.device_put, lambda image: self.jax.block_until_ready(call(image)), self.jax.tree.leaves)


class OpenVino:
    """ONNX models, in float32 or with QDQ pairs, on OpenVINO's CPU plugin with one stream of `threads` threads."""

    package = "openvino"
    distribution = "openvino"

    def __init__(self, threads: int) -> None:
        # Importing OpenVINO reports that to its makers, unless it finds no openvino_telemetry.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
        self.openvino = importlib.import_module("openvino")
        self.core = self.openvino.Core()
        self.settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",  # a processor that has bfloat16 would use it
            "ENABLE_CPU_PINNING": False,
        }

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        compiled = self.core.compile_model(self.core.read_model(model), "CPU", self.settings)
        request = compiled.create_infer_request()
        return Model(
            self.openvino.Tensor,
            lambda image: request.infer(image, share_outputs=True),
            lambda outputs: list(outputs.values()),
        )


class Mnn:
    """ONNX models, converted here, on MNN's CPU backend in float32.

    The converter is the compiled module `_tools`. MNN's own way to it, the command line `mnnconvert` or the package
    `MNN.tools`, installs a package and reports its use when it is imported. A process of its own keeps a converter
    that crashes or prints away from the agent.
    """

    package = "MNN"
    distribution = "MNN"

    def __init__(self, threads: int) -> None:
        self.mnn = importlib.import_module("MNN")
        self.settings = {"backend": "CPU", "precision": "high", "numThread": threads}

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        interpreter = self.convert(model)
        session = interpreter.createSession(self.settings)
        entry = interpreter.getSessionInput(session)

        def run(image: Any) -> Any:
            entry.copyFrom(image)  # the session's own copy is overwritten by what is computed after it
            interpreter.runSession(session)
            return interpreter.getSessionOutput(session)

        return Model(self.on_host, run, lambda output: [self.fetch(output)])

    def convert(self, model: bytes) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            onnx, mnn = os.path.join(folder, "model.onnx"), os.path.join(folder, "model.mnn")
            with open(onnx, "wb") as stream:
                stream.write(model)
            program = "import sys, _tools; _tools.mnnconvert(sys.argv)"
            options = ["-f", "ONNX", "--modelFile", onnx, "--MNNModel", mnn, "--bizCode", "hanax"]
            converter = [sys.executable, "-P", "-c", program, *options]
            ran = subprocess.run(converter, capture_output=True, encoding="utf-8", errors="replace", check=False)
            if not os.path.exists(mnn):
                raise Refusal(f"MNN's converter made no model: {(ran.stdout + ran.stderr).strip()[-400:]}")
            return self.mnn.Interpreter(mnn)

    def on_host(self, image: Any) -> Any:
        """A copy of an array as MNN's tensor, channels first."""
        layout = self.mnn.Tensor_DimensionType_Caffe
        return self.mnn.Tensor(image.shape, self.mnn.Halide_Type_Float, image.copy(), layout)

    def fetch(self, output: Any) -> Any:
        numpy = importlib.import_module("numpy")
        copy = self.on_host(numpy.zeros(output.getShape(), dtype=numpy.float32))
        output.copyToHostTensor(copy)
        return copy.getNumpyData().copy()


class Tract:
    """ONNX models on tract, which computes with one thread."""

    package = "tract"
    distribution = "tract"

    def __init__(self, threads: int) -> None:
        if threads != 1:
            raise Refusal(f"tract computes with 1 thread; got {threads}")
        self.tract = importlib.import_module("tract")

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.onnx")
            with open(path, "wb") as stream:
                stream.write(model)
            runnable = self.tract.onnx().load(path).into_model().into_runnable()
        return Model(
            self.tract.Tensor.from_numpy,
            lambda image: runnable.run([image]),
            lambda outputs: [output.to_numpy() for output in outputs],
        )


class TorchEager:
    """ONNX models as torch modules that Python calls one after another: what the network costs in eager PyTorch."""

    package = "torch"
    distribution = "torch"

    def __init__(self, threads: int) -> None:
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(threads)
        self.torch.set_num_interop_threads(1)

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        onnx = importlib.import_module("onnx")
        graph = onnx.load_from_string(model).graph
        weights = {tensor.name: self.torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
        (entry,), exits = [value.name for value in graph.input], [value.name for value in graph.output]
        # A network in eager PyTorch lets go of a value after its last use, so that its memory serves the next ones.
        last_use = {name: step for step, node in enumerate(graph.node) for name in node.input}
        steps = []
        for step, node in enumerate(graph.node):
            options = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            inputs = [name for name in node.input if name not in weights]
            module = self.module(node, options, [weights[name] for name in node.input if name in weights])
            done = [name for name in set(inputs) if last_use[name] == step]
            steps.append((module, inputs, node.output[0], done))

        def run(image: Any) -> Any:
            values = {entry: image}
            with self.torch.inference_mode():
                for module, inputs, output, done in steps:
                    values[output] = module(*[values[name] for name in inputs])
                    for name in done:
                        del values[name]
            return [values[name] for name in exits]

        return Model(self.torch.tensor, run, lambda outputs: [output.numpy() for output in outputs])

    def module(self, node: Any, options: dict[str, Any], weights: Sequence[Any]) -> Callable[..., Any]:
        """What computes `node`, an ONNX operator with these attributes, from its inputs that are not weights."""
        nn = self.torch.nn
        pads, strides, groups = options.get("pads", [0] * 4), options.get("strides", [1, 1]), options.get("group", 1)
        if node.op_type == "Conv" and len(weights) == 2 and pads[:2] == pads[2:]:
            c_out, c_in, *size = weights[0].shape
            convolution = nn.Conv2d(c_in * groups, c_out, size, strides, pads[:2], groups=groups)
            return self.with_weights(convolution, weights)
        if node.op_type == "Gemm" and len(weights) == 2 and options == {"transB": 1}:
            return self.with_weights(nn.Linear(weights[0].shape[1], weights[0].shape[0]), weights)
        makers: dict[str, Callable[[], Callable[..., Any]]] = {
            "Relu": nn.ReLU,
            "HardSwish": nn.Hardswish,
            "HardSigmoid": nn.Hardsigmoid,
            "GlobalAveragePool": lambda: nn.AdaptiveAvgPool2d(1),
            "Flatten": nn.Flatten,
            "Add": lambda: self.torch.add,
            "Mul": lambda: self.torch.mul,
        }
        is_torch_sigmoid = abs(options.get("alpha", 0.2) - 1 / 6) < 1e-6 and options.get("beta", 0.5) == 0.5
        if node.op_type not in makers or weights or (node.op_type == "HardSigmoid" and not is_torch_sigmoid):
            raise Refusal(
                f"{node.name}: the torch runtime has no {node.op_type} of {len(weights)} weights and {options}"
            )
        return makers[node.op_type]()

    def with_weights(self, module: Any, weights: Sequence[Any]) -> Callable[..., Any]:
        module.requires_grad_(False)
        module.weight.copy_(weights[0])
        module.bias.copy_(weights[1])
        prepared: Callable[..., Any] = module.eval()
        return prepared


class OnnxRuntimeWeb:
    """ONNX models on onnxruntime-web's WebAssembly, in a node process of its own: near what a browser does.

    It finds the npm package where NODE_PATH says, and times runs in node: see `agent_node.cjs`.
    """

    package = "onnxruntime-web"
    distribution = "onnxruntime-web"

    def __init__(self, threads: int) -> None:
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "agent_node.cjs")
        self.node = subprocess.Popen(["node", script, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.dropped: list[int] = []

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        session = self.hold("load", model=encode(model))
        return Model(
            lambda image: self.hold("feed", session=session.number, image=encode(image.tobytes()), shape=image.shape),
            RunInNode(self, session),
            self.fetch,
        )

    def fetch(self, output: InNode) -> list[Any]:
        numpy = importlib.import_module("numpy")
        return [
            numpy.frombuffer(decode(held["base64"]), dtype="<f4").reshape(held["shape"])
            for held in self.ask("fetch", output=output.number)["outputs"]
        ]

    def hold(self, op: str, **fields: Any) -> InNode:
        return InNode(self.ask(op, **fields)["number"], self.dropped)

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """What node answers; whatever goes wrong there is a refusal here."""
        assert self.node.stdin is not None and self.node.stdout is not None
        drop = self.dropped[:]
        del self.dropped[: len(drop)]
        self.node.stdin.write(json.dumps({"op": op, "drop": drop, **fields}).encode() + b"\n")
        self.node.stdin.flush()
        line = self.node.stdout.readline()
        if not line:
            raise RuntimeError(f"node ended instead of answering, with exit status {self.node.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refusal(answer["error"])
        return dict(answer["result"])


class InNode:
    """Something that node holds under a number, until this is forgotten."""

    def __init__(self, number: int, dropped: list[int]) -> None:
        self.number, self.dropped = number, dropped

    def __del__(self) -> None:
        self.dropped.append(self.number)


class RunInNode:
    """Runs a session of node."""

    def __init__(self, web: OnnxRuntimeWeb, session: InNode) -> None:
        self.web, self.session = web, session

    def __call__(self, image: InNode) -> InNode:
        return self.web.hold("run", session=self.session.number, input=image.number)

    def bench(self, image: InNode, inner_ms: float, inner_runs: int) -> dict[str, Any]:
        """`Agent.bench`, timed in node: its clock, its CPU time, no message between two runs."""
        fields = {"session": self.session.number, "input": image.number}
        return self.web.ask("bench", **fields, inner_ms=inner_ms, inner_runs=inner_runs)


class LiteRt:
    """TFLite models in layout NHWC on LiteRT's interpreter, with its default delegate, XNNPACK.

    With one thread neither the interpreter nor the delegate starts any.
    """

    package = "ai_edge_litert"
    distribution = "ai-edge-litert"
    delegate = True

    def __init__(self, threads: int) -> None:
        self.litert = importlib.import_module("ai_edge_litert.interpreter")
        self.threads = threads

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        """Copies into and out of the interpreter's own tensors are `feed` and `fetch`."""
        kernels = self.litert.OpResolverType["BUILTIN" if self.delegate else "BUILTIN_WITHOUT_DEFAULT_DELEGATES"]
        interpreter = self.litert.Interpreter(
            model_content=model, num_threads=self.threads, experimental_op_resolver_type=kernels
        )
        interpreter.allocate_tensors()
        # A build without XNNPACK would go on with its own kernels, and be measured as what it is not.
        if self.delegate != any(op["op_name"] == "DELEGATE" for op in interpreter._get_ops_details()):
            raise Refusal(f"XNNPACK executes {'no part' if self.delegate else 'a part'} of the model")
        (image,), logits = interpreter.get_input_details(), interpreter.get_output_details()
        batch, channels, height, width = input_shape
        if (taken := image["shape"].tolist()) != [batch, height, width, channels]:
            raise Refusal(f"the model takes {taken}, NHWC; got images of {list(input_shape)}, NCHW")
        return Model(
            lambda images: interpreter.set_tensor(image["index"], images.transpose(0, 2, 3, 1)),
            lambda fed: interpreter.invoke(),
            lambda ran: [interpreter.get_tensor(output["index"]) for output in logits],
        )


class LiteRtWithoutDelegate(LiteRt):
    """As `LiteRt`, with TFLite's own kernels alone."""

    delegate = False


class Ncnn:
    """ncnn models, zips of ``model.param`` and ``model.bin``, in float32 on the CPU; otherwise with ncnn's defaults.

    ncnn has no batches: the images of one are run one after another.
    """

    package = "ncnn"
    distribution = "ncnn"

    def __init__(self, threads: int) -> None:
        self.ncnn = importlib.import_module("ncnn")
        self.threads = threads

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        """Copies into and out of ncnn's own arrays are `feed` and `fetch`."""
        numpy = importlib.import_module("numpy")
        net = self.ncnn.Net()
        net.opt.num_threads = self.threads
        net.opt.use_vulkan_compute = False
        for shorter in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_packed", "bf16_storage"):
            setattr(net.opt, f"use_{shorter}", False)
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(io.BytesIO(model)) as files:
            _, channels, height, width = input_shape
            taken = files.read("model.param").decode().splitlines()[2]
            # ncnn does not check this, and an image of another shape can end the process.
            if not taken.endswith(f" 0={width} 1={height} 2={channels}"):
                raise Refusal(f"images of {list(input_shape)} are not what the model takes: {taken}")
            param, weights = (files.extract(name, folder) for name in ("model.param", "model.bin"))
            if net.load_param(param) or net.load_model(weights):
                raise Refusal("ncnn cannot read the model; why is on the agent's stderr")

        def compute(image: Any) -> Any:
            extractor = net.create_extractor()
            extractor.input("image", image)
            failed, logits = extractor.extract("logits")
            if failed:
                raise Refusal("ncnn failed to run the model; why is on the agent's stderr")
            return logits

        return Model(
            lambda images: [self.ncnn.Mat(image).clone() for image in images],  # a Mat alone would be a view
            lambda images: [compute(image) for image in images],
            lambda logits: [numpy.array([numpy.array(row) for row in logits])],
        )


class IreeCompiled:
    """Modules that IREE's compiler made elsewhere for this very processor; they run on the calling thread."""

    package = "iree"
    distribution = "iree-base-runtime"

    def __init__(self, threads: int) -> None:
        if threads != 1:
            raise Refusal(f"IREE's synchronous driver computes with 1 thread; got {threads}")
        self.runtime = importlib.import_module("iree.runtime")
        self.config = self.runtime.Config("local-sync")

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        module = self.runtime.VmModule.copy_buffer(self.config.vm_instance, model)
        main = self.runtime.load_vm_module(module, self.config)["main"]
        return Model(
            lambda image: self.runtime.asdevicearray(self.config.device, image),
            main,
            lambda output: [output.to_host()],
        )


class Iree(IreeCompiled):
    """StableHLO as MLIR bytecode, compiled here by IREE for this processor."""

    target_cpu = "host"

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.compiler = importlib.import_module("iree.compiler")

    def load(self, model: bytes, input_shape: Sequence[int]) -> Model:
        compiled = self.compiler.compile_str(
            model,
            target_backends=["llvm-cpu"],
            input_type="stablehlo",
            extra_args=[f"--iree-llvmcpu-target-cpu={self.target_cpu}"],
        )
        return super().load(compiled, input_shape)


class IreeGeneric(Iree):
    """The same, compiled for any processor of this architecture."""

    target_cpu = "generic"


RUNTIMES: dict[str, type[Runtime]] = {
    "onnxruntime": OnnxRuntime,
    "xla": Xla,
    "openvino": OpenVino,
    "mnn": Mnn,
    "tract": Tract,
    "torch": TorchEager,
    "onnxruntime-web": OnnxRuntimeWeb,
    "litert": LiteRt,
    "litert-no-delegate": LiteRtWithoutDelegate,
    "ncnn": Ncnn,
    "ncnn-aarch64": Ncnn,
    "iree": Iree,
    "iree-generic": IreeGeneric,
    "iree-aarch64": IreeCompiled,
}

IN_ANOTHER_PROCESS = frozenset({"onnxruntime-web"})
"""Runtimes whose `feed` or `fetch` cannot be told from `run`, since all three are messages to another process."""


# ---- the machine -----------------------------------------------------------------------------------------------------


def cpu_model() -> str:
    """Name of the processor as the system gives it; an emulator says what it emulates in HANAX_CPU_MODEL."""
    if emulated := os.environ.get("HANAX_CPU_MODEL"):
        return emulated
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            fields = [line.split(":", 1) for line in lines if ":" in line]
        named = {key.strip(): value.strip() for key, value in fields}
        for key in ("model name", "Model", "Hardware", "Processor", "uarch"):
            if named.get(key):
                return named[key]
    except OSError:
        pass  # not Linux
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip():
            return asked.stdout.strip()
    return platform.processor() or platform.machine() or "unknown"


def load_average() -> float | None:
    """Mean number of runnable processes over the last minute; None where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


class BusyShare:
    """What other processes, the system's and the hypervisor's work took of the cores this process may run on.

    Kept by the kernel in ``/proc/stat``, in hundredths of a second; the work of this process and of those it started is
    taken out.
    """

    def __init__(self) -> None:
        self.last = self.counters()

    def since_last(self) -> tuple[float | None, float]:
        """The share since the last call, 0 to 1 (None where the system does not say), and the seconds it is of."""
        before, self.last = self.last, self.counters()
        wall_s = self.last[0] - before[0]
        if before[1] is None or self.last[1] is None:
            return None, wall_s
        busy_s, own_s = self.last[1] - before[1], self.last[2] - before[2]
        available_s = wall_s * max(len(self.cores()), 1)
        return min(1.0, max(0.0, (busy_s - own_s) / available_s)), wall_s

    def counters(self) -> tuple[float, float | None, float]:
        """The clock, what all processes have taken of the cores so far, and what we have: seconds each."""
        wall_s, times = time.monotonic(), os.times()
        own_s = time.process_time() + times.children_user + times.children_system  # of those that have ended
        try:
            own_s += descendants_cpu_s(os.getpid())
            with open("/proc/stat", encoding="ascii", errors="replace") as lines:
                fields = [line.split() for line in lines]
            names = {f"cpu{core}" for core in self.cores()}
            # user, nice, system, then idle and waiting, then interrupts (2) and steal; guests are in user already.
            ticks = [[int(value) for value in row[1:9]] for row in fields if row and row[0] in names]
            busy = sum(sum(values[:3]) + sum(values[5:]) for values in ticks)
            return wall_s, busy / os.sysconf("SC_CLK_TCK") if ticks else None, own_s
        except (OSError, ValueError):
            return wall_s, None, own_s  # not Linux, or a system that hides it

    def cores(self) -> Sequence[int]:
        """The cores that this process may run on."""
        if hasattr(os, "sched_getaffinity"):
            return sorted(os.sched_getaffinity(0))
        return range(os.cpu_count() or 1)


def descendants_cpu_s(pid: int) -> float:
    """CPU time of the running processes that `pid` started, and that these did, as Linux tells it."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="ascii", errors="replace") as stream:
                # After the command in brackets: state, parent, ...; from 11 on user, system, both of ended children.
                fields = stream.read().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(name)] = int(fields[1])
        ticks[int(name)] = sum(int(value) for value in fields[11:15])
    family = {pid}
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(ticks.get(member, 0) for member in family - {pid}) / os.sysconf("SC_CLK_TCK")


def peak_rss_bytes() -> int | None:
    """Most memory this process has had resident; None where the system does not say.

    Linux's ``ru_maxrss`` outlives exec and would report the parent, so ``VmHWM`` comes first.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class InstructionCounter:
    """Counts what this process executes, where it runs under an emulator with `native/count_instructions.c`.

    The emulator writes the count so far to a pipe at each system call MARKER. It is read after the work, as reading is
    work too.
    """

    MARKER = 0x68616E

    def __init__(self) -> None:
        self.system_call = importlib.import_module("ctypes").CDLL(None).syscall
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def span(self, run: Callable[[Any], Any], fed: Any, runs: int) -> int:
        """Instructions of `runs` times ``run(fed)``, and of asking for the count once."""
        self.system_call(self.MARKER, self.writer)
        for _ in range(runs):
            run(fed)
        self.system_call(self.MARKER, self.writer)
        started, ended = self.read(), self.read()
        return ended - started

    def read(self) -> int:
        """A count that the emulator wrote."""
        try:
            return int.from_bytes(os.read(self.reader, 8), sys.byteorder)
        except BlockingIOError:
            raise Refusal("nothing counts instructions here: the agent does not run under an emulator") from None


# ---- requests --------------------------------------------------------------------------------------------------------


class Agent:
    """Answers requests for one runtime with one number of threads."""

    def __init__(self, runtime: str, threads: int) -> None:
        self.runtime_name = runtime
        self.threads = threads
        self.runtime: Any = None
        self.received: dict[str, bytes] = {}
        self.loaded: dict[str, tuple[Model, Any]] = {}  # with the input of the benchmarks
        self.input_shapes: dict[str, list[int]] = {}
        self.busy = BusyShare()
        self.counter: InstructionCounter | None = None
        self.operations: dict[str, Callable[..., dict[str, Any]]] = {
            "info": self.info,
            "put": self.put,
            "load": self.load,
            "run": self.run,
            "bench": self.bench,
            "stages": self.stages,
            "count": self.count,
            "stats": self.stats,
            "unload": self.unload,
            "quit": dict,
        }

    def answer(self, request: Any) -> dict[str, Any]:
        """The answer to one request; whatever goes wrong becomes an error text, and its traceback goes to stderr."""
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            return {"id": None, "error": f"not a request: {str(request)[:80]!r}"}
        fields = {key: value for key, value in request.items() if key not in ("id", "op")}
        try:
            operation = self.operations.get(request["op"])
            if operation is None:
                raise Refusal(f"unknown operation {request['op']!r}; there are {', '.join(self.operations)}")
            return {"id": request.get("id"), "result": operation(**fields)}
        except Refusal as refusal:
            return {"id": request.get("id"), "error": str(refusal)}
        except ModuleNotFoundError as missing:
            text = f"the Python package {missing.name} is missing in the environment of {sys.executable}"
            return {"id": request.get("id"), "error": text}
        except Exception as error:  # the caller decides what a runtime's failure means
            traceback.print_exc()
            return {"id": request.get("id"), "error": f"{type(error).__name__}: {error}"}

    def info(self) -> dict[str, Any]:
        """What stands here: the runtime (version None if it is missing) and the machine."""
        runtime = RUNTIMES[self.runtime_name]
        return {
            "protocol": PROTOCOL,
            "runtime": self.runtime_name,
            "runtime_version": installed_version(runtime.package, runtime.distribution),
            "package": runtime.package,
            "threads": self.threads,
            "cpu_model": cpu_model(),
            "cores": os.cpu_count() or 1,
            "machine": platform.machine(),
            "system": platform.system(),
            "python": platform.python_version(),
        }

    def put(self, sha256: str, base64: str) -> dict[str, Any]:
        """Receive a model."""
        model = decode(base64)
        actual = hashlib.sha256(model).hexdigest()
        if actual != sha256:
            raise Refusal(f"wrong checksum: {len(model)} bytes of sha256 {actual} came for {sha256}")
        self.received[sha256] = model
        return {"bytes": len(model)}

    def load(self, sha256: str, input_shape: list[int], seed: int) -> dict[str, Any]:
        """Compile a received model and run it once; its bytes are dropped."""
        if sha256 not in self.received:
            raise Refusal(f"no model of sha256 {sha256} was put")
        if self.runtime is None:
            self.runtime = RUNTIMES[self.runtime_name](self.threads)
        numpy = importlib.import_module("numpy")
        image = numpy.random.default_rng(seed).standard_normal(input_shape, dtype=numpy.float32)
        started = time.perf_counter()
        model = self.runtime.load(self.received[sha256], input_shape)
        built = time.perf_counter()
        fed = model.feed(image)
        outputs = [numpy.asarray(output) for output in model.fetch(model.run(fed))]
        ran = time.perf_counter()
        if not all(numpy.isfinite(output).all() for output in outputs):
            raise Refusal("the model's output on random normal input is not finite")
        self.loaded[sha256], self.input_shapes[sha256] = (model, fed), input_shape
        del self.received[sha256]
        return {
            "load_ms": (built - started) * 1e3,
            "first_run_ms": (ran - built) * 1e3,
            "output_shapes": [list(output.shape) for output in outputs],
        }

    def run(self, sha256: str, base64: str, shape: list[int]) -> dict[str, Any]:
        """The outputs of a loaded model, as base64 of little-endian float32."""
        model, _ = self.model(sha256)
        numpy = importlib.import_module("numpy")
        image = numpy.frombuffer(decode(base64), dtype="<f4").reshape(shape)
        outputs = [numpy.asarray(output, dtype="<f4") for output in model.fetch(model.run(model.feed(image)))]
        return {"outputs": [{"base64": encode(output.tobytes()), "shape": list(output.shape)} for output in outputs]}

    def bench(self, sha256: str, inner_ms: float, inner_runs: int) -> dict[str, Any]:
        """One round: run a loaded model for at least `inner_ms` and at least `inner_runs` times."""
        (_, run, _), fed = self.model(sha256)
        if isinstance(run, RunInNode):
            return run.bench(fed, inner_ms, inner_runs)
        runs_ns: list[int] = []
        gc.disable()
        try:
            cpu_started = time.process_time_ns()
            started = now = time.perf_counter_ns()
            end = started + int(inner_ms * 1e6)
            while now < end or len(runs_ns) < inner_runs:
                run(fed)
                before, now = now, time.perf_counter_ns()
                runs_ns.append(now - before)
            cpu_ns = time.process_time_ns() - cpu_started
        finally:
            gc.enable()
        return {"runs_ns": runs_ns, "wall_ns": now - started, "cpu_ns": cpu_ns}

    def stages(self, sha256: str, inner_ms: float, inner_runs: int, image_size: int) -> dict[str, Any]:
        """One round of a loaded model from byte images of `image_size` pixels a side to the most likely class.

        Preprocessing resizes to the model's input (nearest pixel; nothing where the size is right), normalises and
        lays out the channels first, in numpy; post-processing fetches the outputs, softmax and the best class.
        """
        (feed, run, fetch), _ = self.model(sha256)
        if self.runtime_name in IN_ANOTHER_PROCESS:
            raise Refusal(
                f"{self.runtime_name} computes in another process: copying cannot be told from computing there; "
                "measure its latency as a whole"
            )
        numpy = importlib.import_module("numpy")
        batch, channels, height, width = self.input_shapes[sha256]
        rng = numpy.random.default_rng(0)
        image = rng.integers(0, 256, size=(batch, image_size, image_size, channels), dtype=numpy.uint8)
        mean, scale = numpy.full(channels, 127.5, numpy.float32), numpy.full(channels, 1 / 64, numpy.float32)
        rows, columns = (numpy.arange(extent) * image_size // extent for extent in (height, width))
        is_resized = (height, width) != (image_size, image_size)

        def preprocess() -> Any:
            pixels = image[:, rows[:, None], columns] if is_resized else image
            normal = (pixels.astype(numpy.float32) - mean) * scale
            return numpy.ascontiguousarray(normal.transpose(0, 3, 1, 2))

        def postprocess(outputs: Any) -> Any:
            logits = numpy.asarray(fetch(outputs)[0], dtype=numpy.float32).reshape(batch, -1)
            exponentials = numpy.exp(logits - logits.max(axis=1, keepdims=True))
            probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
            best = probabilities.argmax(axis=1)
            return best, probabilities[numpy.arange(batch), best]

        clock = time.perf_counter_ns
        runs_ns: list[list[int]] = []
        gc.disable()
        try:
            cpu_started = time.process_time_ns()
            started = now = clock()
            end = started + int(inner_ms * 1e6)
            while now < end or len(runs_ns) < inner_runs:
                begun = clock()
                ready = preprocess()
                prepared = clock()
                fed = feed(ready)
                copied = clock()
                outputs = run(fed)
                computed = clock()
                postprocess(outputs)
                now = clock()
                runs_ns.append([prepared - begun, copied - prepared, computed - copied, now - computed])
            cpu_ns = time.process_time_ns() - cpu_started
        finally:
            gc.enable()
        return {"runs_ns": runs_ns, "wall_ns": now - started, "cpu_ns": cpu_ns}

    def count(self, sha256: str, runs: int) -> dict[str, Any]:
        """Instructions of `runs` runs of a loaded model together, without those of asking for the count."""
        if self.threads != 1:
            raise Refusal(f"threads that wait for each other execute any number of instructions; got {self.threads}")
        (_, run, _), fed = self.model(sha256)
        self.counter = self.counter or InstructionCounter()
        gc.disable()
        try:
            return {"instructions": self.counter.span(run, fed, runs) - self.counter.span(run, fed, 0)}
        finally:
            gc.enable()

    def model(self, sha256: str) -> tuple[Model, Any]:
        """A loaded model and the input of its benchmarks."""
        if sha256 not in self.loaded:
            raise Refusal(f"no model of sha256 {sha256} is loaded")
        return self.loaded[sha256]

    def stats(self) -> dict[str, Any]:
        """Memory of this process, load of the machine, and the share that others had of it since the last call."""
        busy_share, busy_over_s = self.busy.since_last()
        return {
            "peak_rss_bytes": peak_rss_bytes(),
            "load_average": load_average(),
            "busy_share": busy_share,
            "busy_over_s": busy_over_s,
            "loaded": len(self.loaded),
        }

    def unload(self, sha256: str) -> dict[str, Any]:
        """Forget a model, loaded or only received."""
        self.received.pop(sha256, None)
        self.loaded.pop(sha256, None)
        self.input_shapes.pop(sha256, None)
        return {"loaded": len(self.loaded)}

    def serve(self, requests: BinaryIO, answers: BinaryIO) -> None:
        """Answer line by line until ``quit`` or the end of `requests`."""
        for line in requests:
            try:
                request = json.loads(line)
            except ValueError:
                request = line.decode("utf-8", errors="replace")
            answer = self.answer(request)
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()
            if isinstance(request, dict) and request.get("op") == "quit":
                return


def installed_version(package: str, distribution: str) -> str | None:
    """Version of `package`, from the metadata of `distribution` if it has any; None if the package is missing.

    One that Python lacks may be node's; then node's version counts too.
    """
    if importlib.util.find_spec(package) is None:
        for folder in os.environ.get("NODE_PATH", "").split(os.pathsep):
            path = os.path.join(folder, package, "package.json")
            if os.path.exists(path):
                with open(path, encoding="utf-8") as stream:
                    version = json.load(stream)["version"]
                node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
                return f"{version} (node {node.stdout.strip()})"
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # it came under another name, such as onnxruntime-openvino
        return str(importlib.import_module(package).__version__)


def encode(content: bytes) -> str:
    """`content` as base64 text."""
    return base64.b64encode(content).decode("ascii")


def decode(text: str) -> bytes:
    """Bytes of base64 `text`."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refusal(f"not base64: {error}") from error


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve on stdin and stdout."""
    parser = argparse.ArgumentParser(description="Runs models on this machine and reports how long they take.")
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--node-path", help="the folder of npm packages, for runtimes in node; default: NODE_PATH")
    options = parser.parse_args(arguments)
    if options.node_path:
        os.environ["NODE_PATH"] = options.node_path
    if options.threads < 1:
        parser.error(f"--threads must be at least 1; got {options.threads}")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print to stdout must not end up between the answers
    Agent(options.runtime, options.threads).serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
