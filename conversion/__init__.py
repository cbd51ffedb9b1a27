"""Conversion of third-party checkpoints: StyleGAN2, StyleGAN3, MobileStyleGAN, fusion nets and
directions -> our folder format.

Checkpoints are untrusted: `core/untrusted` reads them, which executes nothing and bounds the memory and time that they
can cost. Read it in this order:

    command.py, options.py              `stylefusion convert`
    convert.py, job.py                  the stages of a conversion in order, and the steps that all sources share

    sources.py, networks.py             which kind of checkpoint it is, and the networks that it contains
    modules.py                          pickled modules
    nvidia.py, stylegan3.py,            tensor names and settings of NVIDIA's two code bases and of rosinality's
    tensorflow.py, rosinality.py
    layouts.py                          tensors under any names to this package's models

    hierarchy.py                        the StyleFusion authors' nets
    direction_files.py, directions.py   editing directions, and what could as well be a code
    ir_files.py, openvino_ir.py,        MobileStyleGAN in OpenVINO's format
    ir_operations.py, ir_network.py,
    mobile_graph.py

    writing.py                          writing the result
    rendering.py, checks.py, report.py  checking it and reporting about it
"""
