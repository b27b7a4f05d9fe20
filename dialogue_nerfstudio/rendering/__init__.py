"""Rendering: rays, boxes, occupancy, and the joint compositing of every avatar's head and torso."""
