"""nerfstudio's side: dataparser, datamanager, model, pipeline, viewer panel. Only this room and cli/ know nerfstudio."""
