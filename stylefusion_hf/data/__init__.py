"""Training data: drawn pictures with exact region maps, and folders of the user's own pictures.

Read it in this order:

    artwork.py          collections of drawn pictures as arrays, caches and folders
    raster.py           SVG text -> picture and label map
    avatars.py          portraits: avatar_choices.py and avatar_spec.py (attributes), avatar_parts.py (SVG templates),
                        avatar_render.py
    cars.py             cars: car_spec.py (attributes), car_render.py
    folders.py          a folder of pictures, optionally with label maps, as a torch dataset
"""
