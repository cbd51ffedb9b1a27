"""The Gradio Space: `stylefusion space`, or `python app.py`. It holds no image logic that the library has."""

EMBEDDED = "embedded"  # the name of the model that comes with the package
