"""Readers of untrusted checkpoints: pickles, torch, numpy and safetensors files. Executes nothing, within bounds.

safe_pickle.py              `load` and `loads`, and why torch.load and numpy.load are not used
inert.py                    `ConversionError`, the budget of a file, and what stands for objects of unknown classes
machine.py, opcodes.py      the pickle interpreter
rebuild.py, array_files.py  replacements for what pickles call; torch's and numpy's file formats
zip_reader.py               zip files
"""
