"""Mirror the metrics of runs to trackers: TensorBoard, W&B, MLflow and trackio.

A mirror reads the files of the runs and never takes part in a training. `mirror.py` reads what is
new and passes it to one tracker. A tracker's library is imported when that tracker is opened.
Commands import it.
"""
