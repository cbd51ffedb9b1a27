"""The ground floor: region trees, codes, recipes, edits, and safe handling of files and untrusted input.

Only `ops/` lies below it, and nothing here knows a concrete model: `latent_spaces.py` states the little that codes
and edits need from a generator. Read it in this order:

    region_tree.py      which regions a domain has and how they nest; tree_checks.py validates trees
    codes.py            seeds, latent codes in z, w, w+ and s, class labels; code_files.py saves codes
    edits.py            directions and edits, functions code -> code
    recipes.py          the JSON that reproduces a batch of pictures
    region_mapping.py   the classes of a segmentation network -> the regions of a tree

and, as needed, the utilities under all of it:

    checks.py                       argument checks, and quoting untrusted text in error messages
    regular_files.py, json_files.py, tensor_files.py    bounded reading of untrusted files
    untrusted/                      bounded reading of pickles, torch's and numpy's files, which executes nothing
    files.py                        atomic writes and folder locks
    hub_files.py, hub_errors.py     verified downloads from the Hugging Face Hub, with clear errors
    memory.py, randomness.py        planning a training's memory, and its reproducible random draws
    command_line.py, progress.py, devices.py, processes.py, seeds.py, versions.py, moved.py
"""
