"""`python -m furnace_hpc COMMAND ...` is `furnace COMMAND ...`, without the script."""

from furnace_hpc.cli import furnace

if __name__ == "__main__":
    furnace()
