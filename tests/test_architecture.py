"""The house rules that a machine can check, read from the source of the package (docs of the layers: README).

Direction of imports, the subset of Flax in use, forbidden constructs, what importing costs, and the size budget.
"""

import ast
import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import qurating_jax
from qurating_jax.stages import STAGES

PACKAGE = Path(qurating_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

ROOMS = ("judges", "scoring", "selection", "tokenizing", "training", "analysis", "reporting")
CONDUCTOR = "experiments"  # runs, plans and compares what the rooms do: one floor above them
BELOW_ROOMS = ("models", "data", "method", "parallel", "runtime")
# Part of the package -> what it may import of ours beside itself: a part, or one module of it.
MAY_IMPORT = {
    "__init__": (),
    "__main__": ("__init__", "config", "stages", "runtime"),
    "config": ("runtime.errors", "runtime.storage"),
    "stages": ("runtime.errors",),
    "stage": ("config", "parallel.options", "parallel.distributed", "parallel.rendezvous", "runtime"),
    "pipeline": ("__init__", "config", "stage", "stages", CONDUCTOR, *ROOMS, *BELOW_ROOMS),
    CONDUCTOR: ("config", *ROOMS, *BELOW_ROOMS),
    **dict.fromkeys(ROOMS, BELOW_ROOMS),
    "models": ("parallel.rules", "parallel.devices", "parallel.distributed", "runtime"),
    "data": ("parallel", "runtime"),
    "method": (),
    "parallel": ("runtime.errors", "runtime.logs"),
    "runtime": (),
}
# Dataclasses for stage configs and files: they may import `config` as well.
SETTINGS = (
    "models.config",
    "training.options",
    "training.lm_options",
    "training.rater_options",
    "scoring.options",
    "tokenizing.options",
    "selection.options",
    "judges.criteria",
    "judges.options",
    "judges.mock_options",
)
NNX = {"Module", "Param", "Rngs", "initializers", "split", "merge", "eval_shape", "to_pure_dict"}
NUMPY_RANDOM = {"default_rng", "Generator", "SeedSequence", "Philox", "PCG64", "BitGenerator"}
MAX_LINES = {"pipeline": 250, "models/llama.py": 350}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def name_of(path: Path) -> str:
    """A file as the package's users import it: `models.hf`, `__main__`; `models` for a package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def module_names() -> set[str]:
    return {name_of(path) for path in FILES}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def own_imports(tree: ast.Module, importer: str, known: set[str]) -> Iterator[tuple[str, int]]:
    """Modules of ours that a tree imports, wherever in the file, and the lines that do."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = ["qurating_jax", *importer.split(".")][: -node.level]
            found = [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            if name.split(".")[0] == "qurating_jax":
                parts = name.split(".")[1:]
                while parts and ".".join(parts) not in known:  # the last part is a name inside a module
                    parts.pop()
                yield ".".join(parts) or "__init__", node.lineno


def part_of(module: str) -> str:
    return module.split(".")[0]


def wrong_imports(tree: ast.Module, importer: str, known: set[str]) -> list[str]:
    part = part_of(importer)
    wrong = []
    for imported, line in own_imports(tree, importer, known):
        if part_of(imported) == part and part != "pipeline":
            continue
        allowed = (*MAY_IMPORT.get(part, ()), *(["config"] if importer in SETTINGS else []))
        if not any(imported == entry or imported.startswith(entry + ".") for entry in allowed):
            wrong.append(f"line {line} imports {imported}")
    return wrong


def each_file(function):
    return pytest.mark.parametrize("path", FILES, ids=name_of)(function)


# --- direction of imports ---------------------------------------------------------------------------------------------


@each_file
def test_imports_go_down_only(path):
    assert wrong_imports(tree_of(path), name_of(path), module_names()) == []


def test_every_part_of_the_package_has_its_place():
    assert {part_of(name) for name in module_names()} <= set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("importer", "source", "is_wrong"),
    [
        ("pipeline.judge", "from qurating_jax.pipeline import select_subset", True),
        ("pipeline.judge", "def main():\n    import qurating_jax.pipeline.select_subset as other", True),
        ("pipeline.judge", "from . import select_subset", True),
        ("pipeline.judge", "from qurating_jax.judges import client\nfrom qurating_jax.config import option", False),
        ("judges.client", "from qurating_jax.scoring import scorer", True),
        ("judges.client", "from ..scoring import scorer", True),
        ("judges.client", "from .prompts import x\nfrom qurating_jax.method import stats", False),
        ("judges.client", "from qurating_jax.config import option", True),
        ("models.hf", "from qurating_jax.parallel.mesh import make_mesh", True),
        ("models.hf", "from qurating_jax.parallel import rules, distributed", False),
        ("models.config", "from qurating_jax.config import option", False),
        ("models.hf", "from qurating_jax.config import option", True),
        ("models.config", "from qurating_jax.stage import StageConfig", True),
        ("data.tokens", "from qurating_jax.method import stats", True),
        ("method.stats", "from qurating_jax.runtime.errors import UserError", True),
        ("parallel.mesh", "from qurating_jax.runtime import storage", True),
        ("runtime.logs", "def f():\n    from qurating_jax.parallel import mesh", True),
        ("runtime.logs", "from qurating_jax import __version__", True),
    ],
)
def test_the_import_check_itself(importer, source, is_wrong):
    known = module_names() | {
        "pipeline.select_subset",
        "scoring.scorer",
        "judges.client",
        "judges.prompts",
        "method.stats",
    }
    assert bool(wrong_imports(ast.parse(source), importer, known)) is is_wrong


# --- forbidden constructs ---------------------------------------------------------------------------------------------


def dotted(node: ast.AST) -> str:
    """`np.random.seed` of an attribute chain, `hash` of a name, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        inner = dotted(node.value)
        return f"{inner}.{node.attr}" if inner else ""
    return ""


def safe_loaders(tree: ast.Module) -> set[str]:
    safe = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any(dotted(base) in safe for base in node.bases):
            safe = safe | {node.name}
    return safe


def wrong_call(call: ast.Call, tree: ast.Module, importer: str) -> str | None:
    name, keywords = dotted(call.func), {keyword.arg: keyword.value for keyword in call.keywords}
    if name in ("hash", "eval", "exec", "compile", "__import__"):
        return f"{name}(): hash differs between processes, the others run text"
    if name.endswith("import_module") and importer != "stages":
        return "import_module hides an import from the layers"
    if name in ("yaml.load", "yaml.load_all"):
        loader = keywords.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
        if loader is None or dotted(loader) not in safe_loaders(tree):
            return f"{name} without a safe loader"
    if name.startswith(("yaml.unsafe_load", "yaml.full_load")):
        return name
    if name.startswith(("np.random.", "numpy.random.")) and name.split(".")[2] not in NUMPY_RANDOM:
        return f"{name} uses the global generator"
    if name.startswith("random.") and name != "random.Random":
        return f"{name} uses the global generator"
    for keyword in ("trust_remote_code", "allow_pickle", "shell"):
        value = keywords.get(keyword)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is False):
            return f"{keyword} may be true"
    return None


def forbidden(tree: ast.Module, importer: str) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (problem := wrong_call(node, tree, importer)):
            found.append(f"line {node.lineno}: {problem}")
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.split(".")[0] in ("pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle"):
                    found.append(f"line {node.lineno}: imports {module}")
    return found


@each_file
def test_nothing_forbidden(path):
    assert forbidden(tree_of(path), name_of(path)) == []


@pytest.mark.parametrize(
    ("source", "is_wrong"),
    [
        ("hash('a')", True),
        ("hasher.hash('a')", False),
        ("eval('1')", True),
        ("model.eval()", False),
        ("re.compile('a')", False),
        ("import pickle", True),
        ("from pickle import loads", True),
        ("yaml.load(s)", True),
        ("yaml.load(s, Loader=yaml.Loader)", True),
        ("yaml.load(s, Loader=yaml.SafeLoader)", False),
        ("class L(yaml.SafeLoader): pass\nyaml.load(s, Loader=L)", False),
        ("class L(yaml.Loader): pass\nyaml.load(s, Loader=L)", True),
        ("np.random.seed(0)", True),
        ("np.random.shuffle(x)", True),
        ("np.random.default_rng(0).shuffle(x)", False),
        ("random.random()", True),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", True),
        ("load(x, trust_remote_code=flag)", True),
        ("np.load(x, allow_pickle=True)", True),
        ("np.load(x, allow_pickle=False)", False),
        ("importlib.import_module('qurating_jax.pipeline.judge')", True),
    ],
)
def test_the_check_for_forbidden_constructs_itself(source, is_wrong):
    assert bool(forbidden(ast.parse(source), "data.documents")) is is_wrong


def flax_names(tree: ast.Module) -> set[str]:
    """What a tree uses of Flax: `nnx.Param` as `Param`, anything that is not `from flax import nnx` by its own name."""
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names if alias.name.split(".")[0] == "flax"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flax":
            used |= {f"{node.module}.{alias.name}" for alias in node.names} - {"flax.nnx"}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnx":
            used.add(node.attr)
    return used


def test_flax_is_used_by_the_models_alone_and_only_its_stable_subset():
    used = {name_of(path): flax_names(tree_of(path)) for path in FILES}
    assert {name: names - NNX for name, names in used.items() if names - NNX} == {}
    assert {part_of(name) for name, names in used.items() if names} == {"models"}
    assert set().union(*used.values()) == NNX  # the list is no longer than what is used


def test_the_check_of_flax_itself():
    assert flax_names(ast.parse("from flax import nnx\nnnx.jit(f)")) == {"jit"}
    assert flax_names(ast.parse("import flax.linen as nn")) == {"flax.linen"}
    assert flax_names(ast.parse("from flax.nnx import Optimizer")) == {"flax.nnx.Optimizer"}


def test_every_logical_axis_is_used():
    from qurating_jax.models import axes
    from qurating_jax.parallel.rules import ShardingRules

    parameters = {name for entry in axes._AXES.values() for name in entry} | {*axes._LM_HEAD, *axes._RATER_HEAD}
    activations = {
        constant.value
        for path in FILES
        for call in ast.walk(tree_of(path))
        if isinstance(call, ast.Call) and dotted(call.func).split(".")[-1] == "constrain"
        for constant in ast.walk(call.args[1])
        if isinstance(constant, ast.Constant)
    }
    assert parameters | activations | {axes.ADAPTER_RANK} == {field.name for field in dataclasses.fields(ShardingRules)}


# --- size -------------------------------------------------------------------------------------------------------------


@each_file
def test_files_and_functions_stay_small(path):
    relative = path.relative_to(PACKAGE).as_posix()
    most = MAX_LINES.get(relative) or MAX_LINES.get(part_of(name_of(path)), MAX_FILE_LINES)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most
    functions = {
        f"{node.name} (line {node.lineno})": node.end_lineno - node.lineno + 1
        for node in ast.walk(tree_of(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: lines for name, lines in functions.items() if lines > MAX_FUNCTION_LINES} == {}


# --- what importing and --help cost -----------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_importing_every_module_touches_no_device():
    names = [f"qurating_jax.{name}" for name in sorted(module_names()) if name != "__init__"]
    result = run(
        "-c",
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "print(sorted(xla_bridge._backends), xla_bridge.backends_are_initialized())",
        *names,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split("\n")[-2] == "[] False"


def test_help_answers_at_once_without_jax_or_numpy():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = run("-X", "importtime", "-m", "qurating_jax", "--help")
        seconds.append(time.perf_counter() - start)
    assert result.returncode == 0
    assert all(stage in result.stdout for stage in STAGES)
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert imported.isdisjoint({"jax", "jaxlib", "numpy", "flax", "draccus", "pyarrow"})
    assert min(seconds) < 0.5


# One interpreter that forks for every stage: the config library is imported once, the stages' modules are not shared.
STAGE_HELP = """
import contextlib, io, json, os, sys
import qurating_jax.config
from qurating_jax.__main__ import STAGES, main

def child(stage):
    text, code = io.StringIO(), 0
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            code = main([*stage.split(), "--help"])
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    heavy = sorted({name.split(".")[0] for name in sys.modules} & set(sys.argv[1:]))
    return {"code": code, "heavy": heavy, "text": text.getvalue()}

found = {}
for stage in STAGES:
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as stream:
            json.dump(child(stage), stream)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        found[stage] = json.load(stream)
    os.wait()
print(json.dumps(found))
"""
HEAVY = ("jax", "jaxlib", "flax", "torch", "transformers", "datasets", "tensorflow", "orbax", "tensorstore")


@pytest.fixture(scope="module")
def stage_help():
    result = run("-c", STAGE_HELP, *HEAVY)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


@pytest.mark.parametrize("stage", STAGES)
def test_help_of_a_stage_imports_no_jax(stage, stage_help):
    found = stage_help[stage]
    assert found["code"] == 0, found
    assert found["heavy"] == []
    assert f"qurating {stage}" in found["text"]
    # They look, measure or serve, and make no output.
    module = STAGES[stage].module.split(".")[0]
    if module not in ("criteria", "judging", "plan", "inspect_path") and not module.startswith("bench_"):
        assert "--output" in found["text"]
