"""Plan the runs of a grid: those that can run now, of the rows and seeds that the user chose."""

from dataclasses import replace

from furnace_hpc.config.grids.expansion import expand
from furnace_hpc.config.grids.row import GridRow
from furnace_hpc.launch.grids.options import Options
from furnace_hpc.launch.measured.limits import site_longest_min
from furnace_hpc.launch.planning.plan import Choices, Plan, Scope
from furnace_hpc.launch.planning.planner import make_plan
from furnace_hpc.monitor.tuning import GetStatus, next_stage
from furnace_hpc.runs.code import code_hash
from furnace_hpc.runs.own_code import own_code_to_copy
from furnace_hpc.runs.snapshot import source


def make_plan_of(
    options: Options, rows: list[GridRow], known_data: dict[str, str], get_status: GetStatus
) -> Plan:
    """Plan the runs of the chosen rows and seeds. Of a tuned grid, plan what can run now.

    Runs that start from the weights of others wait in the plan.

    Args:
        options: the user's choices.
        rows: the chosen rows.
        known_data: data set name -> fingerprint of its packed contents.
        get_status: returns the status of a run.

    Raises:
        ConfigError: as `make_plan`, or a trial is not valid.
    """
    grid, folder = options.grid, options.folder
    choices = Choices(
        code_hash=code_hash(),
        snapshot=source(own_code_to_copy(grid)).snapshot_hash,
        data_root=options.data_root,
        retry=options.retry,
        new_code=options.new_code,
        resume_with=options.resume_with,
        adopt=options.adopt,
        get_status=get_status,
        canary=options.canary,
        longest_min=site_longest_min(options.profile),
    )
    if grid.tune is None:
        specs = [
            spec
            for spec in expand(grid, known_data, rows)
            if str(spec.config.seed) in options.seeds
        ]
        plan = make_plan(grid, specs, options.profile, folder, choices)
        return replace(plan, scope=_scope(options)) if plan.num_later else plan
    stage = next_stage(
        grid,
        rows,
        known_data,
        folder,
        get_status,
        write=not options.dry_run,
        code_hash=choices.code_hash if options.new_code else "",
        adopt=options.adopt,
    )
    wanted = {*options.seeds, *map(str, grid.tune.seeds)}
    specs = [spec for spec in stage.runs if str(spec.config.seed) in wanted]
    plan = make_plan(grid, specs, options.profile, folder, choices)
    return replace(
        plan,
        scope=_scope(options) if stage.waiting or plan.num_later else None,
        num_waiting=len(stage.waiting),
        tuning=tuple(stage.lines(len(stage.waiting) * len(options.seeds))),
    )


def _scope(options: Options) -> Scope:
    data_root = str(options.data_root.resolve())
    scope = Scope(options.variants, options.seeds, data_root, options.adopt, options.new_code)
    if not options.canary:
        return scope
    return scope._replace(
        canary=True, retry=sorted(options.retry), resume_with=dict(options.resume_with)
    )
