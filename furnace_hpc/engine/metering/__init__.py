"""What training steps use: model FLOPs, waiting for data, memory and energy.

Nothing here changes a number of the training: no random numbers are drawn, and no step is made.
"""
