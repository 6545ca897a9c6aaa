"""The pass works inside Olive: alone, before quantization, in a search, and with weights outside the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

import onnxprune
import onnxprune.olive
from onnxprune.cli import main as program

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
SOURCE = SAMPLES / "digits_cnn.onnx"
DATA = SAMPLES / "digits_calibration.npz"
# Olive reports to its makers unless it believes itself in CI; the switch alone is looked at too late.
QUIET = {"CI": "1", "OLIVE_DISABLE_TELEMETRY": "1"}


def test_without_olive_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(onnxprune.olive, "find_spec", lambda _: None)
    result = CliRunner().invoke(program, ["olive-config"])
    assert result.exit_code == 2
    assert "pip install 'onnxprune[olive]'" in result.stderr
    assert not result.stdout


def test_the_configuration_is_olives_own_and_our_pass(tmp_path, monkeypatch):
    own = {"passes": {"Other": {"module_path": "a.b"}}, "extra_dependencies": {"ort": ["onnxruntime"]}}
    (tmp_path / "olive_config.json").write_text(json.dumps(own))

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(onnxprune.olive, "find_spec", lambda _: Spec)
    merged = onnxprune.olive.package_config()
    assert merged["extra_dependencies"] == own["extra_dependencies"]
    assert set(merged["passes"]) == {"Other", "OnnxPrune"}
    assert merged["passes"]["Other"] == own["passes"]["Other"]
    target = tmp_path / "package.json"
    for extra in ([], ["--json"]):
        result = CliRunner().invoke(program, ["olive-config", "-o", str(target), *extra])
        assert (result.exit_code, str(target) in result.stdout) == (0, True), result.output
        assert json.loads(target.read_text()) == merged
    printed = CliRunner().invoke(program, ["olive-config"])
    assert json.loads(printed.stdout) == merged


def test_the_page_shows_the_sample_workflow():
    page = (ROOT / "docs/olive.md").read_text(encoding="utf-8")
    assert f"```json\n{(SAMPLES / 'olive_digits.json').read_text(encoding='utf-8')}```" in page


def check(folder: Path, source: Path = SOURCE) -> Any:
    """Verify what Olive wrote against its plan, from the files alone."""
    verdict = onnxprune.verify(source, folder / "model.onnx", plan=folder / "onnxprune_plan.json", data=str(DATA))
    verdict.raise_if_failed()
    assert verdict.exact is not None
    return verdict


@pytest.mark.skipif(find_spec("olive") is None, reason="needs Olive")
@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Olive's and torch's own
class TestInsideOlive:
    @pytest.fixture(autouse=True)
    def workplace(self, tmp_path, monkeypatch):
        for name, value in QUIET.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)

    def run(self, *passes: dict[str, Any], **workflow: Any) -> Path:
        """Run a workflow; give the folder it wrote."""
        from olive.workflows import run

        model = {"type": "OnnxModel", "model_path": str(SOURCE)}
        steps = {f"step{k}": step for k, step in enumerate(passes)}
        places = {"cache_dir": "cache", "output_dir": "out"}
        run(
            {"input_model": model, "passes": steps, **places, **workflow},
            package_config=onnxprune.olive.package_config(),
        )
        return Path("out")

    def test_the_documented_commands(self, tmp_path):
        (tmp_path / "samples").symlink_to(SAMPLES)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        page = (ROOT / "docs/olive.md").read_text(encoding="utf-8")
        before = SOURCE.read_bytes()
        lines = page.split("```bash\n")[1].split("```")[0].splitlines()
        assert len(lines) == 3
        for line in lines:
            result = subprocess.run(
                [sys.executable, "-m", *line.split()],
                env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": ""},
                capture_output=True,
                text=True,
                timeout=600,
                check=False,
            )
            assert result.returncode == 0, result.stdout + result.stderr
        verdict = check(tmp_path / "olive-pruned")
        assert verdict.macs["ratio"] <= 0.5
        assert verdict.agreement["top1"] > 0.9  # repaired from the samples
        assert SOURCE.read_bytes() == before
        written = {p.key: p.value for p in onnx.load("olive-pruned/model.onnx").metadata_props}
        assert "onnxprune.plan_sha256" in written

    def test_olive_knows_all_its_passes_and_ours(self):
        from olive.package_config import OlivePackageConfig

        ours = OlivePackageConfig.model_validate(onnxprune.olive.package_config())
        assert set(ours.passes) == {*OlivePackageConfig.load_default_config().passes, "onnxprune"}
        assert ours.import_pass_module("OnnxPrune").dataset == "dataset_optional"

    @pytest.mark.parametrize(
        ("config", "searched"),
        [
            ({}, {"criterion", "ratio", "round_to"}),
            ({"target": {"macs": 0.5}}, {"criterion", "round_to"}),  # a ratio beside a target would be refused
            ({"data": "random:2"}, {"ratio", "round_to"}),  # the criterion is then the one that looks at samples
            ({"ratio": [0.1, 0.2], "criterion": "l1", "round_to": 8}, {"ratio"}),
        ],
        ids=["nothing", "a target", "samples", "values"],
    )
    def test_a_search_leaves_out_what_is_decided(self, config, searched):
        from olive.hardware import DEFAULT_CPU_ACCELERATOR

        from onnxprune.olive.passes import OnnxPrune

        given = dict(config)
        assert set(OnnxPrune.get_config_params(DEFAULT_CPU_ACCELERATOR, config)[2]) == searched
        assert config == given
        if "ratio" not in config:
            assert not OnnxPrune.get_config_params(DEFAULT_CPU_ACCELERATOR, config, disable_search=True)[2]

    def test_external_data_goes_in_and_comes_out(self, tmp_path):
        folder = tmp_path / "outside"
        folder.mkdir()
        onnxprune.save(onnxprune.load(SOURCE), folder / "big.onnx", external_data=True)
        assert (folder / "big.onnx.data").exists()
        model = {"type": "OnnxModel", "model_path": str(folder), "onnx_file_name": "big.onnx"}
        for k, wanted in enumerate((None, False)):
            prune = {"type": "OnnxPrune", "ratio": 0.5, "save_as_external_data": wanted}
            out = self.run(prune, input_model=model, output_dir=f"out{k}") and Path(f"out{k}")
            check(out, folder / "big.onnx")
            tensors = onnx.load(out / "model.onnx", load_external_data=False).graph.initializer
            outside = any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors)
            assert outside == (wanted is None)

    def test_quantization_goes_on_where_the_pass_ended(self):
        out = self.run({"type": "OnnxPrune", "ratio": 0.25}, {"type": "OnnxDynamicQuantization"})
        operators = {node.op_type for node in onnx.load(out / "model.onnx").graph.node}
        assert operators & {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"}
        plan = json.loads((out / "onnxprune_plan.json").read_text())
        direct = onnxprune.plan(SOURCE, ratio=0.25)
        assert any(group["removed"] for group in plan["groups"])
        assert [group["removed"] for group in plan["groups"]] == [list(group.removed) for group in direct.groups]

    def test_a_search_finds_what_is_good_enough_with_olives_own_data(self):
        Path("digits_data.py").write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(SAMPLES)!r})\n"
            "from digits_eval import digits\n"
            "from olive.data.registry import Registry\n"
            "class Digits(list):\n"
            "    def __init__(self, part):\n"
            "        super().__init__(({'image': x}, int(y)) for x, y in zip(*digits(part)))\n"
            "@Registry.register_dataset()\n"
            "def digits_test(**_): return Digits('test')\n"
            "@Registry.register_dataset()\n"
            "def digits_train(**_): return Digits('train')[:128]\n"
            "@Registry.register_post_process()\n"
            "def best(output, **_): return output.argmax(dim=1)\n"
        )
        shared = {"user_script": "digits_data.py", "dataloader_config": {"batch_size": 32}}
        test = {"load_dataset_config": {"type": "digits_test"}, "post_process_data_config": {"type": "best"}}
        data = [{"name": "test", **shared, **test}]
        data += [{"name": "train", **shared, "load_dataset_config": {"type": "digits_train"}}]
        score = {"name": "accuracy_score", "priority": 1, "goal": {"type": "max-degradation", "value": 0.05}}
        score["metric_config"] = {"task": "multiclass", "num_classes": 10}
        metric = {"name": "accuracy", "type": "accuracy", "data_config": "test", "sub_types": [score]}
        out = self.run(
            {"type": "OnnxPrune", "ratio": [0.3, 0.9], "round_to": 1, "data_config": "train"},
            data_configs=data,
            evaluators={"measure": {"type": "OnnxEvaluator", "metrics": [metric]}},
            evaluator="measure",
            search_strategy={"execution_order": "joint", "sampler": "sequential"},
        )
        found = [path.parent for path in out.rglob("onnxprune_plan.json")]
        assert found
        for folder in found:
            verdict = check(folder)
            assert 0.3 < verdict.macs["ratio"] < 0.7  # 0.9 lost too much
            assert "score" in json.loads((folder / "onnxprune_plan.json").read_text())["groups"][0]

    @pytest.mark.parametrize(
        ("config", "says"),
        [
            ({}, "ratio"),
            ({"ratio": 0.5, "target": {"macs": 0.5}}, "ratio"),
            ({"ratio": 0.5, "data": "random:2", "data_config": {"name": "other"}}, "not both"),
        ],
        ids=["nothing asked", "both", "two kinds of data"],
    )
    def test_what_cannot_be_done_is_refused(self, config, says):
        from olive.model import ONNXModelHandler
        from olive.passes.olive_pass import create_pass_from_dict

        from onnxprune.olive.passes import OnnxPrune

        step = create_pass_from_dict(OnnxPrune, config, disable_search=True)
        with pytest.raises(onnxprune.OptionError, match=says):
            step.run(ONNXModelHandler(str(SOURCE)), "out/model.onnx")
        assert not list(Path("out").glob("*"))
