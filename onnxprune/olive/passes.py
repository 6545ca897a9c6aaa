"""`OnnxPrune`: a pass that prunes an ONNX model and proves the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from olive.data.config import DataConfig
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam
from olive.search.search_parameter import Categorical

import onnxprune
from onnxprune.api import write_text

PLAN = "onnxprune_plan.json"
PLANNING = (
    "ratio", "target", "max_drop", "metric", "minimize", "criterion", "scope", "max_ratio", "round_to", "kinds",
    "allow_inexact", "include", "exclude", "chains", "seed",
)  # fmt: skip
# (type, what a search tries, meaning); Olive reads the types, so they are values here and no annotations.
PARAMETERS: dict[str, tuple[Any, list[Any] | None, str]] = {
    "ratio": (float, [0.25, 0.5, 0.75], "Remove this fraction of the units of every prunable group."),
    "target": (dict[str, float], None, "Keep at most these fractions of params, macs, bytes or latency."),
    "max_drop": (float, None, "Make the smallest model whose metric falls by no more than this."),
    "metric": (str, None, "FILE.py:FUNCTION, for max_drop: takes a session, gives a number, higher is better."),
    "minimize": (str, None, "What max_drop makes small: macs, params or bytes."),
    "criterion": (str, ["l2", "fpgm"], "What makes a unit worth keeping; obs with data, else l2."),
    "scope": (str, None, "Rank units inside each group (local), or across groups (global)."),
    "max_ratio": (float, None, "No group loses more than this fraction."),
    "round_to": (int | str, [1, "auto"], "Remaining widths are multiples of this; auto is what runs fast."),
    "kinds": (list[str], None, "Only groups of these kinds, such as channels or heads."),
    "allow_inexact": (bool, None, "Prune groups behind a statistic over the pruned axis as well."),
    "include": (list[str], None, "Only groups that match one of these globs."),
    "exclude": (list[str], None, "Leave groups out that match one of these globs."),
    "chains": (list[str], None, "Only groups on these chains of nodes."),
    "seed": (int, None, "For random choices and samples."),
    "data": (str, None, "Samples to rank, repair and verify with: .npz, a folder, FILE.py:NAME or random:N."),
    "data_config": (DataConfig | dict, None, "Samples as Olive describes them, instead of `data`."),
    "recover": (str, None, "Repair the weights that stay from samples: lstsq (default with samples), bias, none."),
    "input_shapes": (dict[str, list[int]], None, "Sizes for inputs with dynamic axes, by input name."),
    "threads": (int, None, "Threads of onnxruntime while models are timed or measured."),
    "save_as_external_data": (bool, None, "Weights in a file of their own; by default as the input model has them."),
}


class OnnxPrune(Pass):  # type: ignore[misc]  # Olive has no types
    """Remove channels, heads and features of an ONNX model, by `ratio`, `target` or `max_drop`.

    The result is verified before it is handed on, and its plan lies beside it as `onnxprune_plan.json`. Parameters are
    those of `onnxprune.prune`, with its defaults.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:
        del accelerator_spec
        return {
            name: PassConfigParam(type_=kind, search_defaults=tried and Categorical(tried), description=meaning)
            for name, (kind, tried, meaning) in PARAMETERS.items()
        }

    @classmethod
    def get_config_params(
        cls,
        accelerator_spec: Any,
        config: dict[str, Any] | None = None,
        disable_search: bool | None = False,  # noqa: FBT002  as Olive declares it
    ) -> Any:
        """Give the search space, less what the configuration decides already."""
        config = dict(config or {})
        if any(config.get(name) is not None for name in ("target", "max_drop")):
            config.setdefault("ratio", None)
        if any(config.get(name) is not None for name in ("data", "data_config")):
            config.setdefault("criterion", None)
        return super().get_config_params(accelerator_spec, config, disable_search)

    def _run_for_config(self, model: ONNXModelHandler, config: Any, output_model_path: str) -> ONNXModelHandler:
        path = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        options = {name: value for name in PLANNING if (value := getattr(config, name)) is not None}
        result = onnxprune.prune(
            model.model_path,
            data=_samples(config, model),
            recover=config.recover,
            input_shapes=config.input_shapes,
            threads=config.threads,
            **options,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        onnxprune.save(result.model, path, external_data=config.save_as_external_data)
        plan = path.with_name(PLAN)
        write_text(plan, result.plan.dumps())
        return ONNXModelHandler(
            # A folder, because Olive moves a file without those beside it.
            model_path=str(path.parent),
            onnx_file_name=path.name,
            model_attributes={**(model.model_attributes or {}), "additional_files": [str(plan)]},
            inference_settings=model.inference_settings,
        )


def _samples(config: Any, model: ONNXModelHandler) -> Any:
    """Give what `data=` takes: our own kind of source, or the calibration reader of Olive's."""
    if config.data is not None and config.data_config is not None:
        raise onnxprune.OptionError("OnnxPrune: give data or data_config, not both")
    if config.data_config is None:
        return config.data
    described = config.data_config
    container = (described if isinstance(described, DataConfig) else DataConfig(**described)).to_data_container()
    return container.create_calibration_dataloader(model_path=model.model_path, io_config=model.io_config)
