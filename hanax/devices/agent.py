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
``bench``   sha256, inner_ms, inner_runs          one round: nanoseconds of every run, wall and CPU time of all
``stats``                                         peak memory of the process, load of the machine
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
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

PROTOCOL = 1


class Refusal(Exception):
    """A request that cannot be met as asked; the text is the answer."""


# ---- runtimes --------------------------------------------------------------------------------------------------------


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

    def load(self, model: bytes, image: Any) -> Callable[[], Sequence[Any]]:
        """A function that runs `model` once on `image` and returns its outputs."""
        session = self.runtime.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])
        names = [argument.name for argument in session.get_inputs()]
        if len(names) != 1:
            raise Refusal(f"the model has inputs {names}; expected exactly one")
        feed = {names[0]: image}
        return lambda: session.run(None, feed)


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

    def load(self, model: bytes, image: Any) -> Callable[[], Sequence[Any]]:
        """A function that runs `model` once on `image` and returns its outputs; its first call compiles."""
        exported = self.export.deserialize(bytearray(model))
        call = self.jax.jit(exported.call)
        on_device = self.jax.device_put(image)
        return lambda: self.jax.tree.leaves(self.jax.block_until_ready(call(on_device)))


RUNTIMES: dict[str, type[OnnxRuntime] | type[Xla]] = {"onnxruntime": OnnxRuntime, "xla": Xla}


# ---- the machine -----------------------------------------------------------------------------------------------------


def cpu_model() -> str:
    """Name of the processor as the system gives it."""
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


# ---- requests --------------------------------------------------------------------------------------------------------


class Agent:
    """Answers requests for one runtime with one number of threads."""

    def __init__(self, runtime: str, threads: int) -> None:
        self.runtime_name = runtime
        self.threads = threads
        self.runtime: Any = None
        self.received: dict[str, bytes] = {}
        self.loaded: dict[str, Callable[[], Sequence[Any]]] = {}
        self.operations: dict[str, Callable[..., dict[str, Any]]] = {
            "info": self.info,
            "put": self.put,
            "load": self.load,
            "bench": self.bench,
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
        run = self.runtime.load(self.received[sha256], image)
        built = time.perf_counter()
        outputs = [numpy.asarray(output) for output in run()]
        ran = time.perf_counter()
        if not all(numpy.isfinite(output).all() for output in outputs):
            raise Refusal("the model's output on random normal input is not finite")
        self.loaded[sha256] = run
        del self.received[sha256]
        return {
            "load_ms": (built - started) * 1e3,
            "first_run_ms": (ran - built) * 1e3,
            "output_shapes": [list(output.shape) for output in outputs],
        }

    def bench(self, sha256: str, inner_ms: float, inner_runs: int) -> dict[str, Any]:
        """One round: run a loaded model for at least `inner_ms` and at least `inner_runs` times."""
        if sha256 not in self.loaded:
            raise Refusal(f"no model of sha256 {sha256} is loaded")
        run = self.loaded[sha256]
        runs_ns: list[int] = []
        gc.disable()
        try:
            cpu_started = time.process_time_ns()
            started = now = time.perf_counter_ns()
            end = started + int(inner_ms * 1e6)
            while now < end or len(runs_ns) < inner_runs:
                run()
                before, now = now, time.perf_counter_ns()
                runs_ns.append(now - before)
            cpu_ns = time.process_time_ns() - cpu_started
        finally:
            gc.enable()
        return {"runs_ns": runs_ns, "wall_ns": now - started, "cpu_ns": cpu_ns}

    def stats(self) -> dict[str, Any]:
        """Memory of this process and load of the machine."""
        return {"peak_rss_bytes": peak_rss_bytes(), "load_average": load_average(), "loaded": len(self.loaded)}

    def unload(self, sha256: str) -> dict[str, Any]:
        """Forget a model, loaded or only received."""
        self.received.pop(sha256, None)
        self.loaded.pop(sha256, None)
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
    """Version of `package`, from the metadata of `distribution` if it has any; None if the package is missing."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:  # it came under another name, such as onnxruntime-openvino
        return str(importlib.import_module(package).__version__)


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
    options = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error(f"--threads must be at least 1; got {options.threads}")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print to stdout must not end up between the answers
    Agent(options.runtime, options.threads).serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
