"""Which of the 478 tracked face landmarks lie around the eyes (MediaPipe's face mesh topology)."""

EYE_CONTOURS = (
    *(33, 7, 163, 144, 145, 153, 154, 155, 133, 246, 161, 160, 159, 158, 157, 173),
    *(263, 249, 390, 373, 374, 380, 381, 382, 362, 466, 388, 387, 386, 385, 384, 398),
)
