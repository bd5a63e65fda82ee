"""What model servers print before they give up, and what it means: a table.

Each pattern was taken from real output: of llama.cpp's server and vLLM as run here, of the others from lines quoted in
public issues (tests/diagnosis/outputs). What a server prints is not to be trusted, so that every pattern begins with
literal text and has no unbounded repetition: time grows with the length of a line and no faster.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_LINE = 1000
"""Characters of a line that are looked at."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A line that names a cause. `sentence` and `remedy` may use the pattern's groups, and {name}, {path}, {port},
    {host}, {memory}, {max_model_len} and {tensor_parallel} of the model's settings."""

    cause: str
    pattern: re.Pattern[str]
    sentence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Match:
    """What a line says."""

    cause: str
    sentence: str
    remedy: str
    line: str


_RESTART = "'cortexctl start {name}'"
_SET = "'cortexctl set {name} "
_GPU_MEMORY = (
    "free the GPU ('nvidia-smi' shows who uses it), or lower " + _SET + "max_model_len=N' or " + _SET
    + "gpu_memory_utilization=SHARE'"
)  # fmt: skip
_CONTEXT = _SET + "max_model_len=N' with a smaller N than {max_model_len}"
_MODEL_PATH = "check the file, or " + _SET + "path=PATH'"
_AGAIN = "download the model again, or " + _SET + "path=PATH'"
_TOKEN = "ask for access on the model's page at huggingface.co, then 'cortexctl secret set {name} HF_TOKEN'"
_REPOSITORY = "check its name, or give a token: " + _SET + "path=ORG/NAME' or 'cortexctl secret set {name} HF_TOKEN'"
_NEWER = "use a newer version of the backend, or another model"
_OPTION = "correct it: 'cortexctl show {name} -p extra_args' shows what was added by hand"
_PORT = "stop what holds it ('ss -ltnp sport = :{port}'), or " + _SET + "port=auto'"
_DRIVER = "check the driver ('nvidia-smi', 'rocm-smi') and " + _SET + "gpus=IDS'; 'gpus=none' serves from the CPU"
_LIBRARY = "repair the backend's installation, or name another one: " + _SET + "exec=FILE'"
_WRITE = "let it write there: " + _SET + "ReadWritePaths=FOLDER'"
_READ = "let it be read by you ('ls -l' shows who may), or move it out of what the sandbox hides"
_TENSOR = _SET + "tensor_parallel=N' with an N that divides it"
_QUANTIZATION = _SET + "quantization=METHOD' with the model's own, or an empty one"
_ROOM = "make room on that disk ('df -h')"

_UNSUPPORTED = "the backend does not support the model's architecture {0}"
_GATED = "the repository {0} is gated, and the server has no token with access to it"
_UNKNOWN = "the repository {0} does not exist, or is not open to everybody"
_PORT_TAKEN = "port {port} is taken by another program"
_GPU_FULL = "the GPU's memory is full"

_TABLE: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    # cause, sentence, patterns, remedy; what stands first outranks what follows.
    # The context that was asked for.
    (
        "context-too-large",
        "max_model_len={0} is more than the GPU's memory has room for ({1})",
        (
            r"max seq len \((\d{1,12})\) is larger than the maximum number of tokens that can be stored in KV cache \((\d{1,12})\)",
            r"max seq len \((\d{1,12})\), \(([\d.]{1,12} [KMGT]iB) KV cache is needed",
        ),
        _CONTEXT,
    ),
    (
        "context-too-large",
        "max_model_len={0} is more than the model was made for ({1})",
        (r"User-specified max_model_len \((\d{1,12})\) is greater than the derived max_model_len \(([^)]{1,200})\)",),
        _CONTEXT,
    ),
    # GPU memory.
    (
        "cuda-out-of-memory",
        _GPU_FULL + ": {0} more could not be had",
        (
            r"(?:CUDA|HIP|XPU) out of memory\. Tried to allocate ([\d.]{1,12} [KMGT]iB)",
            r"allocating ([\d.]{1,12} MiB) on device \d{1,4}: cudaMalloc failed: out of memory",
        ),
        _GPU_MEMORY,
    ),
    (
        "cuda-out-of-memory",
        _GPU_FULL + ": {0} is free, and the server wants {1}",
        (
            r"Free memory on device (?:\S{1,20} )?\(([\d.]{1,12}/[\d.]{1,12} GiB)\) on startup is less than desired GPU memory"
            r" utilization \([\d.]{1,12}, ([\d.]{1,12} GiB)\)",
        ),
        _GPU_MEMORY,
    ),
    (
        "cuda-out-of-memory",
        _GPU_FULL,
        (
            r"(?:CUDA|HIP|ROCm) error: out of memory",
            r"CUDA out of memory",
            r"HIP out of memory",
            r"OutOfMemoryError: ",
            r"No available memory for the cache blocks",
            r"Not enough memory\. Please try to increase --mem-fraction-static",
            r"Not enough memory to handle \d{1,12} prefill tokens",
            r"unable to allocate (?:CUDA|ROCm|Vulkan|SYCL)\d{0,3} buffer",
            r"ErrorOutOfDeviceMemory",
        ),
        _GPU_MEMORY,
    ),
    # GPUs that are not there.
    (
        "gpu-not-visible",
        "the server sees no GPU",
        (
            r"Failed to infer device type",
            r"No CUDA GPUs are available",
            r"Found no NVIDIA driver on your system",
            r"no CUDA-capable device is detected",
            r"CUDA driver version is insufficient for CUDA runtime version",
            r"The NVIDIA driver on your system is too old",
            r"CUDA error: invalid device ordinal",
            r"No HIP GPUs are available",
            r"libcuda\.so\.1: cannot open shared object file",
            r"NVML Shared Library Not Found",
        ),
        _DRIVER,
    ),
    ("gpu-not-visible", "the server sees no GPU {0}", (r'"--device": invalid device: ([\w.:-]{1,40})',), _DRIVER),
    # The model itself.
    (
        "unsupported-architecture",
        _UNSUPPORTED,
        (
            r"unknown model architecture: '([^']{1,80})'",
            r"Model architectures \[([^\]]{1,200})\] (?:are not supported|failed to be inspected)",
            r"has model type `([^`]{1,80})` but Transformers does not recognize this architecture",
            r"Unsupported model type ([\w.-]{1,80})",
            r"Unsupported architectures?:? ([\w.-]{1,80})",
            r"unsupported (?:model )?architecture \"?([\w.-]{1,80})",
        ),
        _NEWER,
    ),
    (
        "model-missing",
        "{0}, which it was to load, does not exist",
        (
            r"failed to open GGUF file '([^']{1,400})' \(No such file or directory\)",
            r"Repo id must .{1,200}: '(/[^']{1,400})'",
            r"Incorrect path_or_model_id: '(/[^']{1,400})'",
            r"gguf_init_from_file: failed to open '([^']{1,400})': 'No such file or directory'",
        ),
        _MODEL_PATH,
    ),
    (
        "model-missing",
        "{path} is no model that it can load: {0} is missing there",
        (r"does not appear to have a file named ([\w.-]{1,80})",),
        _MODEL_PATH,
    ),
    (
        "model-missing",
        "{0} is no model that it can load",
        (
            r"Can't load (?:the )?(?:configuration|tokenizer) (?:of|for) '([^']{1,400})'",
            r"Invalid repository ID or local directory specified: '([^']{1,400})'",
            r"Cannot find any model weights with `?([^`\s]{1,400})",
        ),
        _MODEL_PATH,
    ),
    (
        "sandbox-denied",
        "it may not read {0}",
        (r"failed to open GGUF file '([^']{1,400})' \(Permission denied\)",),
        _READ,
    ),
    (
        "model-broken",
        "the model file is no model: it begins with {0} instead of 'GGUF'",
        (r"invalid magic characters: ('[^']{0,20}'),? expected 'GGUF'",),
        _MODEL_PATH,
    ),
    (
        "model-broken",
        "the model file is truncated: {0} is not all there",
        (r"(tensor '[^']{1,200}') data is not within the file bounds",),
        _AGAIN,
    ),
    (
        "model-broken",
        "the model file is broken or truncated",
        (
            r"gguf_init_from_reader: failed to read",
            r"gguf_init_from_file: failed to read",
            r"gguf_init_from_file_impl: failed to read",
            r"model is corrupted or incomplete",
            r"Error while deserializing header",
            r"SafetensorError",
            r"InvalidHeaderDeserialization",
            r"MetadataIncompleteBuffer",
            r"PytorchStreamReader failed",
            r"[Ii]nvalid file magic",
            r"invalid magic (?:number|character)",
            r"tensor \S{1,200} has (?:invalid|wrong) (?:shape|type|offset|number)",
            r"unexpectedly reached end of file",
        ),
        _AGAIN,
    ),
    # Where it would come from.
    (
        "repository-gated",
        _GATED,
        (
            r"Cannot access gated repo for url https://[\w.-]{1,80}/(?:api/models/)?([\w.-]{1,100}/[\w.-]{1,100})",
            r"Access to model ([\w./-]{1,200}) is restricted",
            r"Repo model ([\w./-]{1,200}) is gated",
        ),
        _TOKEN,
    ),
    (
        "repository-gated",
        "the model's repository is gated, and the server has no token with access to it",
        (r"GatedRepoError", r"You are trying to access a gated repo"),
        _TOKEN,
    ),
    (
        "repository-unknown",
        _UNKNOWN,
        (
            r"Repository Not Found for url: https://[\w.-]{1,80}/(?:api/models/)?([\w.-]{1,100}/[\w.-]{1,100})",
            r"(?:404|401) Client Error: [\w ]{1,20} for url: https://[\w.-]{1,80}/(?:api/models/)?([\w.-]{1,100}/[\w.-]{1,100})",
            r"Repo id must .{1,200}: '([^'/][^']{0,400})'",
        ),
        _REPOSITORY,
    ),
    (
        "repository-unknown",
        "the model {path} does not exist where it was to be downloaded from",
        (
            r"pull model manifest: file does not exist",
            r"is not a local folder and is not a valid model identifier",
            r"RepositoryNotFoundError",
            r"RevisionNotFoundError",
            r"EntryNotFoundError: 404",
            r"model '[^']{1,200}' not found",
        ),
        _REPOSITORY,
    ),
    (
        "repository-unreachable",
        "the model is not in the cache, and could not be downloaded",
        (
            r"LocalEntryNotFoundError",
            r"OfflineModeIsEnabled",
            r"couldn't connect to 'https://huggingface\.co'",
            r"Temporary failure in name resolution",
            r"pull model manifest: Get ",
            r"dial tcp: lookup ",
            r"Could not resolve host",
            r"Max retries exceeded with url",
        ),
        "check the network, and whether downloads are allowed (HF_HUB_OFFLINE), then " + _RESTART,
    ),
    # How many GPUs share it, and how it is quantized.
    (
        "bad-tensor-parallel",
        "the model's {0} attention heads cannot be shared by {1} GPUs",
        (
            r"Total number of attention heads \((\d{1,6})\) must be divisible by tensor parallel size \((\d{1,6})\)",
            r"`num_heads` must be divisible by `num_shards` \(got `num_heads`: (\d{1,6}) and `num_shards`: (\d{1,6})",
        ),
        _TENSOR,
    ),
    (
        "bad-tensor-parallel",
        "tensor_parallel={tensor_parallel} needs more GPUs than the server sees",
        (
            r"larger than the number of available GPUs",
            r"World size \(\d{1,6}\) is larger than",
            r"sharded is true but only found \d{1,6} CUDA devices",
            r"`num_shard` cannot be higher than",
        ),
        _SET + "gpus=IDS' with as many, or " + _SET + "tensor_parallel=N'",
    ),
    (
        "bad-quantization",
        "the model is quantized with {0}, and {1} was asked for",
        (
            r"Quantization method specified in the model config \(([\w.-]{1,40})\) does not match the quantization method specified"
            r" in the `?quantization`? argument \(([\w.-]{1,40})\)",
        ),
        _QUANTIZATION,
    ),
    (
        "bad-quantization",
        "the model is not quantized with {0}",
        (r"Cannot find the config file for ([\w.-]{1,40})",),
        _QUANTIZATION,
    ),
    # Addresses.
    (
        "address-unavailable",
        "this machine has no address {host} to listen on",
        (
            r"[Cc]annot assign requested address",
            r"error while attempting to bind on address \('[^']{1,80}', \d{1,5}\): cannot assign",
        ),
        _SET + "host=127.0.0.1'",
    ),
    (
        "port-in-use",
        _PORT_TAKEN,
        (
            r"couldn't bind HTTP server socket, hostname: \S{1,80} port: \d{1,5}",
            r"bind: address already in use",
            r"[Aa]ddress already in use",
            r"error while attempting to bind on address",
        ),
        _PORT,
    ),
    # What the server was told.
    (
        "bad-option",
        "the server does not know the option {0}",
        (
            r"error: invalid argument: (\S{1,200})",
            r"error: unrecognized arguments: (\S{1,200})",
            r"error: unexpected argument '([^']{1,200})'",
            r"Error: unknown (?:flag|command): ?(\S{1,200})",
        ),
        _OPTION,
    ),
    (
        "bad-option",
        "the server refuses the option {0} ({1})",
        (
            r'error while handling argument "([^"]{1,100})": (.{1,100})',
            r"error: argument ([^:]{1,100}): (.{1,150})",
            r"error: invalid value '[^']{0,200}' for '([^']{1,100})'(?:: )?(.{0,100})",
        ),
        _OPTION,
    ),
    # Its own installation.
    (
        "missing-library",
        "a library that it needs is missing: {0}",
        (
            r"error while loading shared libraries: ([\w.+-]{1,100}): cannot open shared object file",
            r"ImportError: ([\w.+-]{1,100}): cannot open shared object file",
            r"version `(GLIBC(?:XX)?_[\d.]{1,20})' not found",
        ),
        _LIBRARY,
    ),
    (
        "missing-library",
        "a Python module that it needs is missing: {0}",
        (r"ModuleNotFoundError: No module named '([\w.]{1,100})'", r"No module named ([\w.]{1,100})$"),
        _LIBRARY,
    ),
    (
        "nccl-failed",
        "the GPUs could not be made to talk to each other (NCCL: {0})",
        (
            r"NCCL error(?: in)?: ([\w .]{1,80})",
            r"ncclSystemError: ([\w .]{1,80})",
            r"ncclInternalError: ([\w .]{1,80})",
        ),
        "run it with the environment variable NCCL_DEBUG=INFO, and look at 'cortexctl logs {name}'",
    ),
    # What it may do.
    (
        "sandbox-denied",
        "it cannot write {0}: the sandbox leaves that read-only",
        (
            r"Read-only file system: b?'([^']{1,400})'",
            r"(?:mkdir|open|create|rename|unlink|symlink|chmod|chown|touch) (/[^:\s]{1,400}): read-only file system",
            r"cannot (?:create|open|touch|write|remove) (?:directory |regular file )?['‘]([^'’]{1,400})['’]: Read-only file system",
        ),
        _WRITE,
    ),
    (
        "sandbox-denied",
        "it may not use {0}: the sandbox or the file's permissions forbid it",
        (
            r"Permission denied: b?'([^']{1,400})'",
            r"(?:mkdir|open|create|rename|unlink|symlink|chmod|chown|touch|stat) (/[^:\s]{1,400}): permission denied",
            r"cannot (?:create|open|touch|write|remove) (?:directory |regular file )?['‘]([^'’]{1,400})['’]: Permission denied",
        ),
        _WRITE,
    ),
    (
        "sandbox-denied",
        "it cannot write to a folder that the sandbox leaves read-only",
        (r"Read-only file system",),
        _WRITE,
    ),
    ("disk-full", "the disk is full", (r"No space left on device", r"Disk quota exceeded"), _ROOM),
    # Its memory: not killed, but refused.
    (
        "context-too-large",
        "the context of {max_model_len} tokens does not fit into memory",
        (
            r"failed to initialize the context: std::bad_alloc",
            r"failed to create (?:llama_)?context",
            r"failed to create_context",
            r"failed to allocate buffer for kv cache",
            r"failed to allocate compute buffers",
        ),
        _CONTEXT,
    ),
    (
        "out-of-memory",
        "it was to take more memory than is free ({0})",  # vLLM on a CPU
        (r"Available memory on node \S{1,20} \(([\d./]{1,40} GiB)\) on (?:startup|kv cache allocation) is less than ",),
        "end what else uses memory, or have it take less: " + _SET + 'extra_args="--kv-cache-memory-bytes N"\'',
    ),
    (
        "out-of-memory",
        "it was refused more memory than it has (its limit is {memory})",
        (
            r"std::bad_alloc",
            r"DefaultCPUAllocator: can't allocate memory",
            r"Cannot allocate memory",
            r"unable to allocate (?:CPU|CPU_Mapped) buffer",
            r"failed to allocate buffer of size",
            r"^MemoryError",
        ),
        "give it more, or a smaller model or context: " + _SET + "memory=SIZE' or " + _SET + "max_model_len=N'",
    ),
    (
        "out-of-memory",
        "it needs {0} of memory, which the machine does not have free",
        (r"model requires more system memory \(([\d.]{1,12} [KMGT]iB)\) than is available",),
        "stop another model, or use a smaller one",
    ),
    (
        "crashed",
        "the engine inside the server died",
        (r"EngineDeadError", r"Engine core initialization failed", r"llama runner process has terminated"),
        "look at 'cortexctl logs {name}'",
    ),
    ("model-broken", "it could not load its model {0}", (r"failed to load model '([^']{1,400})'",), _MODEL_PATH),
)

PATTERNS: tuple[Pattern, ...] = tuple(
    Pattern(cause, re.compile(pattern), sentence, remedy)
    for cause, sentence, patterns, remedy in _TABLE
    for pattern in patterns
)


_HARMLESS = re.compile(
    r"(?<![=\w])(?:INFO|WARNING|WARN|DEBUG)\b|^[\d.]{1,20} [IWD] |level=(?:INFO|WARN|DEBUG)\b|Warning: "
)
"""How a server marks a line that is no error: vLLM, on any machine, warns that one library or another is missing."""


def read(lines: Iterable[str], settings: dict[str, str]) -> Match | None:
    """The best-ranked cause that the lines name, told by its last line; None where they name none. Lines that the server
    itself does not call errors count only where no other line names a cause."""
    newest_first = [line[:MAX_LINE] for line in lines][::-1]
    harmless = [bool(_HARMLESS.search(line[:80])) for line in newest_first]
    for kind in (False, True):
        chosen = [line for line, mild in zip(newest_first, harmless, strict=True) if mild is kind]
        if found := _best(chosen, settings):
            return found
    return None


def _best(newest_first: list[str], settings: dict[str, str]) -> Match | None:
    for pattern in PATTERNS:
        for line in newest_first:
            if found := pattern.pattern.search(line):
                groups = [group or "" for group in found.groups()]
                return Match(
                    pattern.cause,
                    pattern.sentence.format(*groups, **settings),
                    pattern.remedy.format(*groups, **settings),
                    line,
                )
    return None
