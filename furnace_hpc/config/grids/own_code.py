"""The own code of a grid's rows: check what they name, and add its hash to their identity."""

from furnace_hpc.config.errors import ConfigError
from furnace_hpc.config.grids.grid import Grid
from furnace_hpc.config.own_code.references import references
from furnace_hpc.config.own_code.static_check import check_reference
from furnace_hpc.config.train_config import TrainConfig


def with_own_code(grid: Grid, config: TrainConfig) -> TrainConfig:
    """A row's config with the hash of the grid's code, if the row uses it.

    The copy of a grid that submit wrote has the hash alone. Its files were checked before.

    Raises:
        ConfigError: the grid has no code, or a file, name or parameter does not exist.
    """
    used = references(config)
    if not used:
        return config
    if grid.code_sha256 is None:
        first = used[0]
        raise ConfigError(
            f"{first.key} is {first.path}, and the grid lists no code. Add "
            f"code: [./{first.package}], relative to the grid file"
        )
    problems = []
    for reference in used:
        try:
            if grid.own_code is not None:
                check_reference(grid.own_code, reference)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config.model_copy(update={"own_code": grid.code_sha256})
