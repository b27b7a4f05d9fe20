"""Simulated conversations with known truth: procedural people who talk, listen and answer, and their sound."""

from dialogue_nerfstudio.conversation.simulate.head_model import Person, PersonState
from dialogue_nerfstudio.conversation.simulate.people import cast
from dialogue_nerfstudio.conversation.simulate.ray_marcher import render_background, render_person
from dialogue_nerfstudio.conversation.simulate.sample import (
    SimulatedPerson,
    SimulationConfig,
    simulate_conversation,
    simulate_people,
)
from dialogue_nerfstudio.conversation.simulate.truth import TrueView, TruthRenderer

__all__ = [
    "Person",
    "PersonState",
    "SimulatedPerson",
    "SimulationConfig",
    "TrueView",
    "TruthRenderer",
    "cast",
    "render_background",
    "render_person",
    "simulate_conversation",
    "simulate_people",
]
