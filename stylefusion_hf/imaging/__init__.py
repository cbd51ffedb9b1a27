"""Pictures: reading untrusted files, aligning faces and regions, comparing features, contact sheets and animations.

Read `images.py` first, the only place where picture files are opened (`picture_headers.py` checks what can be known
before pixels are decoded; `arrays.py` and `squares.py` convert and resize, `png_text.py` reads the text of PNG files).
`faces.py` and `landmarks.py` align faces as in FFHQ, `alignment.py` aligns regions between poses, `features.py`
measures perceptual distance. `sheets.py` draws contact sheets, `animation.py` writes GIF, WebP and MP4 files.
"""
