"""nerfstudio's side of the motion models: data manager, pipeline, trainer and the methods that ns-train finds."""
