"""Runs inside pyannote's own environment, as a program: a WAV file in, an RTTM file out.

    python -I pyannote_worker.py REQUEST.json

REQUEST holds `audio` (16-bit PCM WAV, mono), `rttm` and `answer` (files to write), `model` (a folder or a hub name)
and `num_speakers` (or null). The answer is JSON: {"ok": true, "version": …}, or {"ok": false, "kind": …, "message": …}
with kind "gated" (no permission to download the model), "missing" (no such model, or no connection) or "failed". The
token of the hub is in the environment, HF_TOKEN, never in a file.

Nothing of this package is importable here, and Python may be another version.
"""

import json
import os
import sys
import wave


def read_wave(path):
    """Samples [1, S] as a float tensor, and their rate."""
    import numpy
    import torch

    with wave.open(path) as file:
        samples = numpy.frombuffer(file.readframes(file.getnframes()), "<i2").astype("float32") / 32768.0
        return torch.from_numpy(samples)[None], file.getframerate()


def diarize(request):
    """Runs the pipeline and writes the RTTM; the answer."""
    import pyannote.audio
    from pyannote.audio import Pipeline

    model = request["model"]
    if os.path.isdir(model):
        import yaml

        with open(os.path.join(model, "config.yaml"), encoding="utf-8") as file:
            name = yaml.safe_load(file)["pipeline"]["name"]
        # The configuration names a class to import: only pyannote's own.
        if not str(name).startswith("pyannote."):
            return {"ok": False, "kind": "failed", "message": f"its config.yaml names the class {name}"}
    pipeline = Pipeline.from_pretrained(model, token=os.environ.get("HF_TOKEN") or None)
    if pipeline is None:
        return {"ok": False, "kind": "gated", "message": "the hub did not hand out the model"}
    waveform, sample_rate = read_wave(request["audio"])
    options = {} if request["num_speakers"] is None else {"num_speakers": request["num_speakers"]}
    output = pipeline({"waveform": waveform, "sample_rate": sample_rate}, **options)
    # Since version 4 an object of several annotations; the one with overlaps is wanted.
    annotation = getattr(output, "speaker_diarization", output)
    with open(request["rttm"], "w", encoding="utf-8") as file:
        for segment, _, speaker in annotation.itertracks(yield_label=True):
            file.write(
                f"SPEAKER conversation 1 {segment.start:.3f} {segment.duration:.3f} <NA> <NA> {speaker} <NA> <NA>\n"
            )
    return {"ok": True, "version": pyannote.audio.__version__}


def kind_of(error):
    """Which sentence the user needs."""
    names = [cls.__name__ for cls in type(error).__mro__]
    text = str(error)
    if "GatedRepoError" in names or "gated" in text.lower() or "401" in text or "403" in text:
        return "gated"
    if {"RepositoryNotFoundError", "LocalEntryNotFoundError", "ConnectionError", "OfflineModeIsEnabled"} & set(names):
        return "missing"
    return "failed"


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    try:
        answer = diarize(request)
    except Exception as error:  # whatever it is, the process that waits for the answer says it to the user
        lines = [line for line in str(error).splitlines() if line.strip()]
        answer = {"ok": False, "kind": kind_of(error), "message": f"{type(error).__name__}: {(lines or [''])[0]}"}
    with open(request["answer"], "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
