"""Mirror the metrics of runs to trackers: TensorBoard, W&B, MLflow and trackio.

A mirror only reads the files of the runs. `mirror.py` reads new records and passes them to one
tracker. A tracker's library is imported when that tracker is opened. Commands import this package.
"""
