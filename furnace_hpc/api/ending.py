"""What follows when the queue on this machine has ended: the notification, then the mirrors."""

from furnace_hpc.api.notice import notify
from furnace_hpc.launch.planning.plan import Plan
from furnace_hpc.trackers.mirror_all import mirror_to_all


def after_queue(plan: Plan) -> None:
    """Send the notification, and mirror the runs to the profile's trackers.

    A failure is one printed warning.
    """
    notify(plan.grid, plan.folder)
    mirror_to_all(plan.profile.trackers, plan.folder)
