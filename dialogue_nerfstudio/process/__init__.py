"""Media in, a Conversation out: one module a stage, in the order a frame goes through them; `pipeline.process_video`
runs them all."""
