"""Real errors of CUDA, NCCL, gloo and torch's store, each with its source, and their verdicts."""

from typing import NamedTuple

import pytest

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.host import end_reasons, lifecycle
from furnace_hpc.runs.folder import RunFolder, write_json
from furnace_hpc.runs.records.verdict import verdict_of

GITHUB = "https://github.com"
TORCH, NCCL = f"{GITHUB}/pytorch/pytorch", f"{GITHUB}/NVIDIA/nccl"
C10D = "torch/csrc/distributed/c10d"  # in the sources of torch


class DistBackendError(RuntimeError):
    """These three have the names of torch's classes."""


class DistNetworkError(RuntimeError):
    pass


class DistStoreError(RuntimeError):
    pass


class Case(NamedTuple):
    verdict: str
    message: str
    source: str
    kind: type[Exception] = RuntimeError


CASES = [
    # memory
    Case(
        "oom",
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        f"{GITHUB}/pinokiocomputer/pinokio/issues/31",
    ),
    Case("oom", "CUDA error: out of memory", f"{GITHUB}/ray-project/ray/issues/3947"),
    Case("oom", "CUDA driver error: out of memory", f"{GITHUB}/deepmodeling/deepmd-kit/pull/3857"),
    Case(
        "oom", "cuda runtime error (2) : out of memory", f"{GITHUB}/rowanz/neural-motifs/issues/58"
    ),
    Case(
        "oom",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        f"{GITHUB}/QwenLM/Qwen3/issues/873",
    ),
    Case(
        "oom",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        f"{GITHUB}/jcjohnson/neural-style/issues/161",
    ),
    Case(
        "oom",
        'NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830',
        f"{TORCH}/issues/112377",
    ),
    Case(
        "oom",
        "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\n"
        "Cuda failure 2 'out of memory'",
        f"{TORCH}/issues/152302",
        DistBackendError,
    ),
    Case(
        "oom",
        "enqueue.cc:43 NCCL WARN Cuda failure 'out of memory'",
        f"{GITHUB}/NVIDIA/TensorRT-LLM/issues/1670",
    ),
    Case(
        "oom",
        "failed to alloc 34359738368 bytes on host: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
        f"{GITHUB}/talmolab/sleap/issues/2001",
    ),
    Case(
        "oom",
        "[enforce fail at CPUAllocator.cpp:64] . DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 67108864 bytes. Error code 12 (Cannot allocate memory)",
        f"{GITHUB}/NeverGiveU/CartoonGAN-pytorch/issues/1",
    ),
    Case("oom", "std::bad_alloc", f"{GITHUB}/ljanyst/ssd-tensorflow/issues/8"),
    # the GPU or its node
    Case(
        "gpu",
        "CUDA error: uncorrectable ECC error encountered",
        f"{GITHUB}/vllm-project/vllm/issues/5222",
    ),
    Case(
        "gpu",
        "cuda runtime error (39) : uncorrectable ECC error encountered",
        f"{GITHUB}/NVIDIA/semantic-segmentation/issues/33",
    ),
    Case(
        "gpu",
        "CUDA error: uncorrectable NVLink error detected during the execution",
        f"{GITHUB}/MIC-DKFZ/nnUNet/issues/1519",
    ),
    Case("gpu", "CUDA error: unspecified launch failure", f"{TORCH}/issues/74235"),
    Case(
        "gpu",
        "CUDA error: all CUDA-capable devices are busy or unavailable",
        f"{GITHUB}/facebookresearch/detectron2/issues/2580",
    ),
    Case(
        "gpu",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        f"{GITHUB}/ggml-org/llama.cpp/issues/11841",
    ),
    Case(
        "gpu",
        "CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error",
        f"{GITHUB}/ultralytics/ultralytics/issues/24536",
    ),
    Case(
        "gpu",
        "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
        "calling NumCudaDevices() that might have already set an error? Error 802: system not yet "
        "initialized",
        f"{GITHUB}/haotian-liu/LLaVA/issues/683",
    ),
    Case(
        "gpu",
        "cuda runtime error (802) : system not yet initialized",
        f"{TORCH}/issues/35710",
    ),
    Case(
        "gpu",
        "CUDA error: no CUDA-capable device is detected",
        f"{GITHUB}/slczgwh/REDN/issues/5",
    ),
    Case(
        "gpu",
        "Unable to determine the device handle for GPU 0000:03:00.0: GPU is lost.",
        f"{GITHUB}/AlexeyAB/darknet/issues/86",
    ),
    # NCCL wraps an error of CUDA
    Case(
        "gpu",
        "NCCL error: unhandled cuda error\nncclUnhandledCudaError: Call to CUDA function failed.\n"
        "Last error:\nCuda failure 214 'uncorrectable ECC error encountered'",
        "the form of NCCL's src/include/checks.h",
        DistBackendError,
    ),
    # other ranks
    Case(
        "peer_lost",
        "NCCL error in: NCCLUtils.hpp:268, remote process exited or there was a network error\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process "
        "exiting prematurely.",
        f"{NCCL}/issues/2076",
        DistBackendError,
    ),
    Case(
        "peer_lost",
        "ncclInternalError: Internal check failed.\nLast error:\nNet : Connection closed by remote "
        "peer user<50260>",
        f"{NCCL}/issues/1514",
        DistBackendError,
    ),
    Case(
        "peer_lost",
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or "
        "device error.",
        f"{TORCH}/issues/149984",
        DistBackendError,
    ),
    Case(
        "peer_lost",
        "socketProgressOpt: Call to recv from 172.0.0.1<33759> failed : Connection reset by peer",
        f"{NCCL}/issues/2076",
    ),
    Case(
        "peer_lost",
        "Net : Call to recv from 10.200.84.247<58355> failed : Broken pipe",
        f"{NCCL}/issues/795",
    ),
    Case(
        "peer_lost",
        "NET/IB : Got completion from peer 11.214.147.122<39138> with error 12, opcode 0, len 0",
        f"{GITHUB}/tatsu-lab/stanford_alpaca/issues/207",
    ),
    Case(
        "peer_lost",
        "socketStartConnect: Connect to 10.0.0.2<45763> failed : Software caused connection abort",
        f"{NCCL}/issues/1515",
    ),
    Case(
        "peer_lost",
        "socketPollConnect: Connect to 10.0.0.4<56849> returned 113(No route to host) errno 115",
        f"{GITHUB}/sgl-project/sglang/issues/3820",
    ),
    Case(
        "peer_lost",
        "NCCL communicator was aborted on rank 0.",
        f"{GITHUB}/PeterGriffinJin/Search-R1/issues/170",
        DistBackendError,
    ),
    Case(
        "peer_lost",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:598] Connection closed by peer [18.0.0.1]",
        f"{TORCH}/issues/75512",
    ),
    Case(
        "peer_lost",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error [192.0.0.1]:25266: "
        "Connection reset by peer",
        f"{GITHUB}/RVC-Project/Retrieval-based-Voice-Conversion-WebUI/issues/1882",
    ),
    Case(
        "peer_lost",
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 60000ms for recv operation",
        "gloo/transport/tcp/unbound_buffer.cc of gloo",
    ),
    Case(
        "peer_lost",
        "The client socket has timed out after 600000ms while trying to connect to (172.0.0.1, 9).",
        f"{GITHUB}/vllm-project/vllm/issues/19670",
        DistNetworkError,
    ),
    Case(
        "peer_lost",
        "The client socket has failed to connect to any network address of (node7, 29500).",
        f"{C10D}/socket.cpp",
        DistNetworkError,
    ),
    Case(
        "peer_lost",
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server "
        "shutdown or crash?",
        f"{TORCH}/pull/153586",
        DistNetworkError,
    ),
    Case("peer_lost", "failed to recv, got 0 bytes", f"{TORCH}/pull/153586", DistNetworkError),
    Case(
        "peer_lost",
        "wait timeout after 600000ms, keys: /default_pg/0//cuda//0",
        f"{GITHUB}/vllm-project/vllm/issues/12526",
        DistStoreError,
    ),
    Case(
        "peer_lost",
        "Timed out after 6 seconds waiting for workers. 1/2 workers joined.",
        f"{TORCH}/pull/111805",
        DistStoreError,
    ),
    Case("peer_lost", "Socket Timeout", f"{TORCH}/issues/55571"),
    Case(
        "peer_lost",
        "rank 0 did not publish its address in rendezvous/1 within 0:31:00",
        "furnace_hpc/engine/ranks/distributed.py",
        TimeoutError,
    ),
    # hangs
    Case(
        "hang",
        "[Rank 2] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, "
        "OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=120000) ran for 120822 milliseconds",
        f"{GITHUB}/huggingface/picotron_tutorial/issues/6",
        DistBackendError,
    ),
    Case(
        "hang",
        "ProcessGroupNCCL's watchdog got stuck for 480 seconds without making progress",
        f"{GITHUB}/om-ai-lab/VLM-R1/issues/257",
    ),
    Case(
        "hang",
        "[PG 0 Rank 0] Heartbeat monitor timed out! Process will be terminated",
        f"{GITHUB}/facebookresearch/dinov2/issues/447",
    ),
    # the same again on any node
    Case(
        "crash",
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast error:\n"
        "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 10",
        f"{GITHUB}/verl-project/verl/issues/161",
        DistBackendError,
    ),
    Case("crash", "CUDA error: device-side assert triggered", f"{TORCH}/issues/29966"),
    Case(
        "crash",
        "CUDA error: an illegal memory access was encountered",
        f"{GITHUB}/alexandrosstergiou/SoftPool/issues/52",
    ),
    Case(
        "crash",
        "mat1 and mat2 shapes cannot be multiplied (4x32 and 48x10)",
        "aten/src/ATen/native/LinearAlgebra.cpp of torch",
    ),
    Case("crash", "the config has CUDA out of memory in a name", "this project", ConfigError),
]


def test_table_has_enough_messages():
    assert len({case.message for case in CASES}) >= 45
    assert all(case.source for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.verdict}: {case.message[:40]}")
def test_real_error_gives_its_verdict(case):
    assert verdict_of(case.kind(case.message)) == case.verdict


def test_class_decides_where_words_are_unknown():
    assert verdict_of(DistBackendError("NCCL error 99, new words")) == "peer_lost"
    assert verdict_of(RuntimeError("NCCL error 99, new words")) == "crash"


# The ends of logs of ranks that C++ aborted. Sources: the issues of the cases above.
WATCHDOG = (
    "[rank5]:[E1 ProcessGroupNCCL.cpp:607] [Rank 5] {why}\n"
    "terminate called after throwing an instance of 'c10::DistBackendError'\n"
    "  what():  [PG 3 Rank 5] Process group watchdog thread terminated with exception: {why}\n"
    "frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x96\n"
)
TIMEOUT = "[Rank 5] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9141)"
LOGS = {
    "hang": (WATCHDOG.format(why=TIMEOUT), "requeue"),
    "peer_lost": (WATCHDOG.format(why="NCCL error: ncclRemoteError: A call failed"), "requeue"),
    "gpu": (WATCHDOG.format(why="CUDA error: uncorrectable ECC error encountered"), "requeue"),
    "crash": (WATCHDOG.format(why="CUDA error: device-side assert triggered"), "fail"),
    "oom": ("terminate called after throwing an instance of 'std::bad_alloc'\n", "fail"),
    # no abort: the log only quotes an error, and Slurm may know why the rank is gone
    "killed": ("step 3\nWARNING: retry after Connection reset by peer\n", "fail"),
}


@pytest.mark.parametrize("reason", LOGS)
def test_log_of_an_aborted_rank(tmp_path, reason):
    """A rank that NCCL's watchdog aborts (SIGABRT) has no time to write a verdict."""
    log, answer = LOGS[reason]
    lifecycle.begin(str(tmp_path), {"world_size": 1})
    run = RunFolder(tmp_path)
    report = {"verdict": "entered", "step": 3, "unix_s": 1.0, "error": "", "host": "node7"}
    write_json(run.verdict(1, 0), report)
    run.log(1, 0).write_text("step 2\n" * 9000 + log)
    assert lifecycle.decide(str(tmp_path), 1, 134) == answer
    record = lifecycle.read_attempt(str(tmp_path), 1)
    assert record["reason"] == reason
    assert record["blamed"] == (["node7"] if reason == "gpu" else [])
    if reason not in ("killed",):
        assert record["error"].endswith("; see logs/1-0.log")


def test_slurm_knows_more_about_a_lost_peer():
    assert end_reasons.is_more_specific("oom", "peer_lost")
    assert end_reasons.is_more_specific("node_fail", "peer_lost")
    assert not end_reasons.is_more_specific("node_fail", "gpu")
