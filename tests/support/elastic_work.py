"""Functions of the ranks in test_elastic.py: save with some ranks and stage, load with others.

forked_ranks.run_phases calls make, resume, begin and refuse as f(processes, folder, case).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from furnace_hpc.engine.checkpoint.shards import AVERAGE
from furnace_hpc.engine.weights.average import update_average
from furnace_hpc.runs.folder import RunFolder

GLOBAL_BATCH, MADE_AT, MORE = 8, 3, 4  # samples; steps before the checkpoint; steps after it
MOMENTS = ("exp_avg", "exp_avg_sq")
BASE = ("fp32", *MOMENTS)
Case = dict[str, Any]
"""Keys: do (function), source (checkpoint), stage, zero (settings), precision, fusion, ema."""


# Stage 3 as on a large model: no parameter stays gathered, and there are several sub-groups.
PARTITIONED = {"stage3_param_persistence_threshold": 0, "sub_group_size": 100}
OFFLOADED = {
    f"offload_{what}": {"device": "cpu", "pin_memory": False} for what in ("optimizer", "param")
}


def case(do: str, source: str, stage: int, **more: Any) -> Case:
    """A case: what a phase does with a checkpoint."""
    zero = {"zero": PARTITIONED} if stage == 3 else {}
    return {"do": do, "source": source, "stage": stage} | zero | more


class Network(nn.Module):
    """Odd sizes, a shared weight, and BatchNorm statistics that do not depend on the world size."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.first, self.second = (
            nn.Linear(7, 13),
            nn.Linear(13, 13),
            nn.Linear(13, 13),
        )
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(13)
        self.head = nn.Linear(13, 5)
        self.scale = nn.Parameter(torch.rand(1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        norm, dtype = self.norm, self.norm.weight.dtype
        if self.training:
            norm.running_mean.add_(0.125)
            norm.running_var.mul_(1.25)
            norm.num_batches_tracked.add_(1)
        x = self.second(torch.relu(self.first(self.encode(x.to(dtype)))))
        # Stored statistics: those of a rank's batch would depend on the number of ranks. In fp32:
        # DeepSpeed casts buffers to bf16 at stages 1 and 2, but not at stage 3.
        parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        x = nn.functional.batch_norm(x.float(), *(part.float() for part in parts)).to(dtype)
        return self.head(x * self.scale)

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Three groups. The last is one number, which only one rank stores at stages 1 and 2."""
        decayed = [self.encode.weight, self.first.weight, self.head.weight]
        others = [
            p
            for name, p in self.named_parameters()
            if name.endswith("bias") or name == "norm.weight"
        ]
        return [
            {"params": decayed, "lr": lr, "weight_decay": 0.1},
            {"params": others, "lr": lr / 2, "weight_decay": 0.0},
            {"params": [self.scale], "lr": lr * 3, "weight_decay": 0.01, "betas": (0.8, 0.9)},
        ]


def make(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """Train, save, record the expected state, and continue training."""
    engine = engine_of(case, processes, seed=0, lr=1e-2)
    steps_of(engine, case, processes, 0, MADE_AT)
    run = RunFolder(folder / case["source"])
    saver = saver_of(engine, run, processes)
    saver.begin({"step": MADE_AT})
    known = state_of(engine)
    known["losses"] = steps_of(engine, case, processes, MADE_AT, MORE)  # while it is written
    saver.wait(MADE_AT + MORE)
    if processes.is_rank_zero:
        torch.save(known, run.path / "known.pt")
    engine.destroy()
    return {**case, "losses": known["losses"]}


def resume(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """Load into an engine with other weights and rates. Compare with the recorded state."""
    from furnace_hpc.engine.checkpoint import loader

    run = RunFolder(folder / case["source"])
    known = torch.load(run.path / "known.pt", weights_only=False)
    engine = engine_of(case, processes, seed=1, lr=7e-4)
    state = loader.load(context_of(engine, run, processes), MADE_AT)
    loaded = state_of(engine)
    losses = steps_of(engine, case, processes, MADE_AT, MORE)
    steps = sorted({float(state["step"]) for state in state_of_adam(engine)})
    counters = [engine.global_steps, engine.global_samples]
    engine.destroy()
    return {
        **case,
        "processes": processes.world_size,
        "differences": {
            kind: _difference(loaded[kind], known[kind])
            for kind in (*BASE, AVERAGE, "buffers")
            if kind in known
        },
        "same_groups": loaded["groups"] == known["groups"],
        "client_state": state,
        "loss_difference": max(abs(a - b) for a, b in zip(losses, known["losses"], strict=True)),
        "adam_steps": steps,
        "counters": counters,
    }


def begin(processes: Any, folder: Path, case: Case) -> dict[str, Any]:
    """Losses of a run, and of one that resumes from a checkpoint of step 0."""
    from furnace_hpc.engine.checkpoint import loader

    run = RunFolder(folder / case["source"])
    engine = engine_of(case, processes, seed=0, lr=1e-2)
    assert saver_of(engine, run, processes).save({"step": 0})
    wanted = steps_of(engine, case, processes, 0, MORE)
    engine.destroy()
    engine = engine_of(case | {"stage": case["to_stage"]}, processes, seed=1, lr=7e-4)
    loader.load(context_of(engine, run, processes), 0)
    losses = steps_of(engine, case, processes, 0, MORE)
    engine.destroy()
    return {"wanted": wanted, "got": losses}


def refuse(processes: Any, folder: Path, case: Case) -> str:
    """The error of a checkpoint that cannot be loaded."""
    from furnace_hpc.engine.checkpoint import loader

    engine = engine_of(case, processes, seed=1, lr=7e-4)
    try:
        loader.load(context_of(engine, RunFolder(folder / case["source"]), processes), MADE_AT)
        return "loaded"
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        engine.destroy()


def saver_of(engine: Any, run: RunFolder, processes: Any, **config: Any) -> Any:
    """A saver of attempt 0."""
    from furnace_hpc.engine.checkpoint.saver import CheckpointSaver

    return CheckpointSaver(context_of(engine, run, processes, **config), saved=-1)


def context_of(engine: Any, run: RunFolder, processes: Any, **config: Any) -> Any:
    from make import make_config, make_context

    return make_context(make_config(**config), engine, run.path, processes)


def engine_of(case: Case, processes: Any, seed: int, lr: float) -> Any:
    import deepspeed

    torch.manual_seed(seed)
    model, groups = _model_of(case, lr)
    offload = "offload_optimizer" in case.get("zero", {})
    optimizer = torch.optim.AdamW(groups, lr=lr, eps=case.get("eps", 1e-8), fused=not offload)
    config = {
        "train_batch_size": GLOBAL_BATCH,
        "train_micro_batch_size_per_gpu": GLOBAL_BATCH // processes.world_size,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        "zero_optimization": {"stage": case["stage"], **case.get("zero", {})},
    }
    if case.get("precision") == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if offload:
        config["zero_force_ds_cpu_optimizer"] = False
    return deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )[0]


def _model_of(case: Case, lr: float) -> tuple[nn.Module, list[dict[str, Any]]]:
    if not case.get("fusion"):
        network = Network()
        return network, network.groups(lr)
    from make import SHAPES

    from furnace_hpc.config.sections.model import ModelConfig
    from furnace_hpc.model.network import FusionModel

    config = ModelConfig(width=32, feedforward=48, text_layers=1, dropout=0.0)
    fusion = FusionModel(config, SHAPES, {"digit": 10})
    decayed = [parameter for parameter in fusion.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in fusion.parameters() if parameter.dim() < 2]
    return fusion, [{"params": decayed}, {"params": others, "lr": lr / 2, "weight_decay": 0.0}]


def steps_of(engine: Any, case: Case, processes: Any, first: int, count: int) -> list[float]:
    """Mean loss of each step over all ranks. The data depends on the step alone."""
    losses = []
    share = GLOBAL_BATCH // processes.world_size
    mine = slice(processes.rank * share, (processes.rank + 1) * share)
    for step in range(first, first + count):
        if case.get("fusion"):
            loss = _fusion_loss(engine, step, mine)
        else:
            generator = torch.Generator().manual_seed(step)
            x, y = torch.randn(GLOBAL_BATCH, 7, generator=generator), torch.arange(GLOBAL_BATCH) % 5
            loss = nn.functional.cross_entropy(engine(x[mine]).float(), y[mine])
        engine.backward(loss)
        engine.step()
        if decay := case.get("ema"):
            update_average(engine, _with_average(decay), step + 1)
        losses.append(
            processes.all_reduce_sum(loss.detach().float().clone()).item() / processes.world_size
        )
    return losses


def _with_average(decay: float) -> Any:
    from make import make_config

    return make_config(ema={"decay": decay})


def _fusion_loss(engine: Any, step: int, mine: slice) -> Tensor:
    from make import make_inputs

    inputs, lengths, present = make_inputs(B=GLOBAL_BATCH)
    inputs["image"] = inputs["image"] * (1 + 0.1 * step)
    cut = ({key: value[mine] for key, value in part.items()} for part in (inputs, lengths))
    output = engine(*cut, present[mine])
    return nn.functional.cross_entropy(
        output["logits"]["digit"].float(), torch.arange(GLOBAL_BATCH)[mine]
    )


def state_of(engine: Any) -> dict[str, Any]:
    """Collective. The whole state that loading must restore."""
    from deepspeed.utils import safe_get_full_fp32_param

    has_average = any(AVERAGE in state for state in state_of_adam(engine))
    kept = (*MOMENTS, AVERAGE) if has_average else MOMENTS
    state: dict[str, Any] = {kind: {} for kind in ("fp32", *kept)}
    for name, parameter in engine.module.named_parameters():
        whole = (
            safe_get_full_fp32_param(parameter)
            if engine.zero_optimization_stage()
            else parameter.detach()
        )
        state["fp32"][name] = whole.clone()
        for key in kept:
            state[key][name] = _whole_moment(engine, parameter, key)
    state["buffers"] = {name: buffer.clone() for name, buffer in engine.module.named_buffers()}
    state["groups"] = [
        {key: group[key] for key in ("lr", "weight_decay", "betas", "eps")}
        for group in engine.optimizer.param_groups
    ]
    return state


def _whole_moment(engine: Any, parameter: Any, key: str) -> Tensor:
    """Collective. Read from the optimizer's own state, which its next step uses.

    At stages 1 and 2, DeepSpeed 0.19.8's safe_get_full_optimizer_state finds only the first group.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    match engine.zero_optimization_stage():
        case 0:
            return engine.optimizer.state[parameter][key].clone()
        case 3:
            return safe_get_full_optimizer_state(parameter, key).clone()
    whole = torch.zeros(parameter.numel())
    if (mine := parameter._hp_mapping) is not None:
        flat = engine.optimizer.param_groups[mine.param_group_index]["params"][0]
        here, there = mine.hp_fragment_address, mine.lp_fragment_address
        part = engine.optimizer.optimizer.state[flat][key].narrow(0, here.start, here.numel)
        whole.narrow(0, there.start, there.numel).copy_(part)
    torch.distributed.all_reduce(whole)
    return whole.view(parameter.shape)


def state_of_adam(engine: Any) -> list[dict[str, Any]]:
    return list(getattr(engine.optimizer, "optimizer", engine.optimizer).state.values())


def _difference(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(
        ((found[name].double() - wanted[name].double()).abs().max().item() for name in wanted),
        default=0.0,
    )
