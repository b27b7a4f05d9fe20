"""dialogue-nerfstudio: avatars of two people talking, trained and rendered through nerfstudio."""

__version__ = "0.1.0"
