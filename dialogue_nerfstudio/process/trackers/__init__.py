"""Face trackers: what finds the landmarks of one person's crop, one interface over several networks."""

from dialogue_nerfstudio.process.trackers.registry import TRACKERS as TRACKERS
from dialogue_nerfstudio.process.trackers.registry import TrackerConfig as TrackerConfig
from dialogue_nerfstudio.process.trackers.registry import make_tracker as make_tracker
from dialogue_nerfstudio.process.trackers.tracker import FaceTracker as FaceTracker
from dialogue_nerfstudio.process.trackers.tracker import lacks_sentence as lacks_sentence
