"""Nothing that a model brings along is run or asked about, by whatever door it comes in."""

import ast
import builtins
import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_dynrefer as small
import torch
import transformers
from PIL import Image

import dynrefer
from dynrefer import cli
from dynrefer.data.record_files import write_records
from dynrefer.models.tokenizer import train_tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
ROOMS = ("dynrefer", "data_prep", "eval", "train", "bench", "docs")

# ------------------------------------------------------------------------------------------------ what the files say

OWN = {  # whose from_pretrained is our own: it makes no class of others
    "cls.config_class",
    "row.load('config')",
    "row.load('model')",
    "row.load('processor')",
    "DynReferModel",
    "super()",  # in saving.py, which sets trust_remote_code itself
}
CODE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code"}
SAFE_LOADERS = ("_Loader", "yaml.SafeLoader", "yaml.BaseLoader")  # of YAML: plain values, or texts, only
PICKLE_USERS = {
    "dynrefer/plain_pickle.py": "its reader is restricted",
    "dynrefer/convert/torch_pickle.py": "its reader is restricted",
    "dynrefer/models/folder_check.py": "names its error",
    "bench/scale.py": "reads bytes that it wrote itself",
}


def calls():
    """(file, call, the function's text) of every call in the repository's rooms."""
    files = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(REPOSITORY).as_posix(), node, ast.unparse(node.func)


def keyword(call, name):
    return next((ast.unparse(each.value) for each in call.keywords if each.arg == name), None)


def test_every_call_that_could_run_code_of_a_model_says_no():
    found = wrong = 0
    for file, call, function in calls():
        receiver, _, method = function.rpartition(".")
        if method not in ("from_pretrained", "from_config", "get_class_from_dynamic_module"):
            continue
        if receiver in OWN or method == "get_config_dict":
            continue
        found += 1
        if keyword(call, "trust_remote_code") != "False":
            wrong += 1
            print(f"{file}:{call.lineno} {function}")
    assert found >= 15 and not wrong


def test_nothing_is_unpickled_or_run():
    wrong = []
    for file, call, function in calls():
        if function == "torch.load" and keyword(call, "weights_only") != "True":
            wrong.append((file, call.lineno, function))
        if function in ("np.load", "numpy.load") and keyword(call, "allow_pickle") not in (None, "False"):
            wrong.append((file, call.lineno, function))
        if function == "yaml.load" and keyword(call, "Loader") not in SAFE_LOADERS:
            wrong.append((file, call.lineno, function))
        if function.startswith("yaml.") and function not in (
            "yaml.load",
            "yaml.safe_load",
            "yaml.dump",
            "yaml.safe_dump",
        ):
            wrong += [(file, call.lineno, function)] if "load" in function else []
        if function in (
            "exec",
            "eval",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "torch.jit.load",
            "torch.hub.load",
        ):
            wrong.append((file, call.lineno, function))
        if keyword(call, "weights_only") == "False" or keyword(call, "shell") == "True":
            wrong.append((file, call.lineno, function))
    assert not wrong


def test_pickles_are_known_to_few_files():
    found = set()
    for path in sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            if CODE_MODULES & {name.split(".")[0] for name in names}:
                found.add(path.relative_to(REPOSITORY).as_posix())
    assert found == PICKLE_USERS.keys()


def test_the_loader_of_yaml_makes_plain_values_only():
    import yaml

    from dynrefer.config import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    with pytest.raises(ValueError):
        dynrefer.config.parse_value("!!python/object/apply:os.getcwd []")


# ------------------------------------------------------------------------------------------------ traps

TRAP = """
from pathlib import Path
Path({canary!r}).write_text("ran")
from transformers import *
class Trap: pass
Config = Model = Words = Pictures = Trap
"""
MAP = {
    "AutoConfig": "trap.Config",
    "AutoModel": "trap.Model",
    "AutoModelForCausalLM": "trap.Model",
    "AutoModelForImageTextToText": "trap.Model",
    "AutoProcessor": "trap.Words",
    "AutoImageProcessor": "trap.Pictures",
    "AutoTokenizer": ["trap.Words", "trap.Words"],
}


class Evil:
    """Its pickle writes the canary."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.write_text, (Path(self.canary), "ran")


def change(path, **values):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}))


def traps_in_settings(folder, canary):
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        change(folder / name, auto_map=MAP)


def traps_in_second_tokenizer(folder, canary):
    change(folder / "text_tokenizer/tokenizer_config.json", auto_map=MAP, tokenizer_class="Words")
    shutil.copy(folder / "trap.py", folder / "text_tokenizer/trap.py")


def traps_in_parts(folder, canary):
    config = json.loads((folder / "config.json").read_text())
    parts = [name for name, value in config.items() if name.endswith("_config") and isinstance(value, dict)]
    change(folder / "config.json", **{name: {**config[name], "auto_map": MAP} for name in parts})


def unknown_tokenizer(folder, canary):
    change(folder / "tokenizer_config.json", auto_map=MAP, tokenizer_class="Words")


def unknown_model(folder, canary):
    change(folder / "config.json", auto_map=MAP, model_type="trap")


def pickled_weights(folder, canary):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    torch.save({"query_tokens": Evil(canary)}, folder / "pytorch_model.bin")


def plainly_pickled_weights(folder, canary):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(canary)))


def pickles_beside(folder, canary):
    (folder / "adapter").mkdir(exist_ok=True)
    change(folder / "adapter/adapter_config.json", peft_type="LORA", auto_mapping={"parent_library": "trap"})
    for name in ("adapter/adapter_model.bin", "training_args.bin", "optimizer.pt", "pytorch_model.bin"):
        torch.save(Evil(canary), folder / name)


def generation(folder, canary):
    (folder / "custom_generate").mkdir(exist_ok=True)
    shutil.copy(folder / "trap.py", folder / "custom_generate/generate.py")
    change(folder / "config.json", generation={"custom_generate": str(folder), "trust_remote_code": True})
    change(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True, penalty_alpha=0.6)


def other_generation(folder, canary):
    change(folder / "config.json", generation={"penalty_alpha": 0.6, "top_k": 4})


def kernels(folder, canary):
    change(folder / "config.json", attn_implementation="somebody/kernel")


def tower_of_a_folder(folder, canary):
    tower = {"model_type": "open_clip_vision", "architecture": f"local-dir:{folder}", "image_size": 32}
    change(folder / "config.json", vision_config=tower)
    shutil.copy(folder / "pytorch_model.bin", folder / "open_clip_pytorch_model.bin")


TRAPS = (
    traps_in_settings,
    traps_in_second_tokenizer,
    traps_in_parts,
    unknown_tokenizer,
    unknown_model,
    pickled_weights,
    plainly_pickled_weights,
    pickles_beside,
    generation,
    other_generation,
    kernels,
    tower_of_a_folder,
)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A model's folder, a base part's folder, a picture and records."""
    home = tmp_path_factory.mktemp("home")
    model, _ = small.model()
    model.save_pretrained(home / "model")
    tokenizer = train_tokenizer(small.CAPTIONS * 3, 120)
    llama = transformers.AutoConfig.for_model(
        **small.LLAMA["config"], vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id
    )
    transformers.AutoModelForCausalLM.from_config(llama).save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    Image.fromarray(small.picture()).save(home / "0.png")
    write_records(home / "train.jsonl", small.regions())
    return home


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A path that only code of a trap writes to, while whoever is asked says yes."""
    asked = []
    monkeypatch.setattr(builtins, "input", lambda *question: asked.append(question) or "yes")
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of a model has run"
    assert not asked, "somebody was asked whether code may run"


def trapped(source, trap, canary, target):
    shutil.copytree(source, target)
    (target / "trap.py").write_text(TRAP.format(canary=str(canary)))
    torch.save(Evil(str(canary)), target / "pytorch_model.bin")
    trap(target, str(canary))
    return target


def train(*settings):
    from train.run import command

    return command(["--config", str(REPOSITORY / "configs/finetune.yaml"), *settings])


def doors(folder, home, out):
    """{a door: what a user runs}"""
    from eval.run import main as evaluate

    common = [f"output={out}", f"data.train={home / 'train.jsonl'}", "data.num_workers=0", "loop.steps=1", "name=run"]
    common += ["data.val=null", "loop.eval_every=0", "loop.num_threads=1", "log.tensorboard=false"]
    task = ["--task", "refcocog-a", "--data", str(home / "train.jsonl"), "--num-workers", "0", "--out", str(out / "e")]
    return {
        "load": lambda: dynrefer.load(folder, device="cpu"),
        "info": lambda: cli.main(["info", str(folder)]),
        "describe": lambda: cli.main(
            ["describe", str(home / "0.png"), "--model", str(folder), "--box", "4", "4", "40", "30"]
        ),
        "eval": lambda: evaluate(["--model", str(folder), "--device", "cpu", *task]),
        "eval of others": lambda: evaluate(["--model", str(folder), "--captioner", "crop", "--device", "cpu", *task]),
        "train": lambda: train(f"init={folder}", *common),
        "convert": lambda: cli.main(["convert", "dynrefer", "--export", str(folder), "--output", str(out / "a.pth")]),
        "convert lavis": lambda: cli.main(
            ["convert", "lavis", "--export", str(folder), "--output", str(out / "b.pth")]
        ),
        "push": lambda: cli.main(["push", str(folder), "me/model"]),
    }


DOORS = tuple(doors(Path(), Path(), Path()))


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.__name__)
def test_no_trap_is_sprung_by_any_door(places, tmp_path, canary, capsys, trap):
    folder = trapped(places / "model", trap, canary, tmp_path / "model")
    for door in DOORS:
        (out := tmp_path / door.replace(" ", "-")).mkdir()
        try:
            status = doors(folder, places, out)[door]()
        except ValueError as error:
            status, said = 2, str(error)
        else:
            said = capsys.readouterr().err
        assert not canary.exists(), door
        assert "trust_remote_code=True" not in said and "weights_only" not in said and "Traceback" not in said, door
        assert status == 2 or trap not in (pickled_weights, plainly_pickled_weights, unknown_model, kernels), door


PART_TRAPS = [trap for trap in TRAPS[:8] if trap is not traps_in_second_tokenizer]  # a base part has one tokenizer


@pytest.mark.parametrize("trap", PART_TRAPS, ids=lambda trap: trap.__name__)
def test_no_trap_of_a_base_part_is_sprung(places, tmp_path, canary, trap):
    folder = trapped(places / "base", trap, canary, tmp_path / "base")
    try:
        small.model(language={"name": str(folder), "mode": "frozen"})
    except ValueError as error:
        assert "trust_remote_code" not in str(error) and "weights_only" not in str(error)
    else:
        assert trap in (traps_in_settings, traps_in_parts, pickles_beside)
