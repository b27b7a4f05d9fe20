"""nerfstudio's side: dataparser, datamanager, model, pipeline, viewer panel. Only it and cli/ know nerfstudio."""
