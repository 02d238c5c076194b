"""The dry run: a training program on torch's CUDA build where there is no GPU. Nothing here is a measurement
of one.
"""
