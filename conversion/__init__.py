"""Conversion of third-party checkpoints: StyleGAN2, MobileStyleGAN, fusion nets and directions -> our folder format.

Checkpoints are untrusted: nothing in them is executed, and the memory and time they can cost are bounded. Read it in
this order:

    command.py, convert.py              `stylefusion convert`, and the stages of a conversion in order

    safe_pickle.py                      reading untrusted files, and why we do not use torch.load; it builds on
    inert.py, machine.py, opcodes.py,   the pickle interpreter, its budget, and replacements for what pickles call
    rebuild.py
    torch_files.py, numpy_files.py,     file formats
    zip_reader.py

    sources.py                          which kind of checkpoint it is, and which networks it contains
    modules.py, nvidia.py,              pickled modules, settings and names of NVIDIA's PyTorch and TensorFlow code
    tensorflow.py
    layouts.py                          renaming tensors to this package's models

    hierarchy.py, fusion_nets.py        the StyleFusion authors' nets
    directions.py                       editing directions
    ir_files.py, openvino_ir.py,        MobileStyleGAN in OpenVINO's format
    ir_operations.py, mobile_graph.py

    writing.py, destination.py          writing the result
    rendering.py, checks.py, report.py  checking it and reporting about it
"""
