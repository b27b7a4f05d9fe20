"""Motion metrics on cases whose numbers can be worked out by hand, and against plain forms of the formulas."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.cluster import KMeans

from dialogue_nerfstudio.metrics import motion as metrics
from dialogue_nerfstudio.metrics.motion import ClipPair


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_l1_is_the_mean_of_all_differences():
    assert metrics.l1_rlhg(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])) == 6 / 4


def test_frechet_distance_of_known_gaussians():
    # In one dimension it is (μ − μ̂)² + (σ − σ̂)².
    first, second = np.array([[-1.0], [1.0]]), np.array([[1.0], [7.0]])
    assert metrics.frechet_distance(first, second) == pytest.approx(16 + (np.sqrt(2) - np.sqrt(18)) ** 2)
    assert metrics.frechet_distance(first, first) == pytest.approx(0.0, abs=1e-12)


def test_frechet_distance_is_the_formula_with_a_matrix_root():
    first, second = noise((400, 6)) @ noise((6, 6), 1), noise((300, 6), 2) @ noise((6, 6), 3) + 0.5
    one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(one + other - 2 * sqrtm(one @ other).real)
    assert metrics.frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_numbers_that_never_change_is_finite():
    first = np.concatenate([noise((50, 2)), np.zeros((50, 3))], axis=1)
    shifted = first + np.array([0, 0, 2.0, 0, 0])
    assert metrics.frechet_distance(first, shifted) == pytest.approx(4.0)


def test_paired_frechet_distance_sees_a_lost_relation():
    partner = noise((2000, 1))
    true = partner.copy()
    unrelated = noise((2000, 1), 1)
    unrelated = (unrelated - unrelated.mean()) / unrelated.std() * true.std() + true.mean()
    assert metrics.frechet_distance(unrelated, true) < 1e-6
    assert metrics.paired_frechet_distance(unrelated, true, partner) > 0.5


def test_variances():
    clip = np.array([[0.0, 10.0], [2.0, 10.0]])
    assert metrics.variance_over_time(clip) == 0.5
    assert metrics.flattened_variance(clip) == np.var([0, 10, 2, 10])


def test_shannon_diversity_of_even_and_of_frozen_motion():
    true = np.repeat(np.arange(4.0), 25)[:, None]
    even, truth = metrics.shannon_diversity(true, true, 4)
    assert even == truth == pytest.approx(2.0, abs=1e-4)
    frozen, _ = metrics.shannon_diversity(np.zeros((100, 1)), true, 4)
    assert frozen == pytest.approx(0.0, abs=1e-4)


def test_shannon_diversity_is_that_of_scikit_learns_clusters():
    true, predicted = noise((300, 3)), noise((200, 3), 1)
    labels = KMeans(9, n_init=10, random_state=0).fit(true).predict(predicted)
    share = np.bincount(labels, minlength=9) / 200
    expected = -sum(p * np.log2(p + 1e-6) for p in share)
    assert metrics.shannon_diversity(predicted, true, 9)[0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="9 clusters"):
        metrics.shannon_diversity(predicted, true[:8], 9)


def test_rpcc():
    partner = noise((500, 2))
    assert metrics.rpcc(-partner, partner, partner) == pytest.approx(2.0)
    assert metrics.rpcc(partner, partner, partner) == 0.0
    assert metrics.rpcc_flattened(-partner, partner, partner) == pytest.approx(2.0)
    # One number follows, the other does not: half of them are wrong by one.
    still = partner * [1.0, 0.0]
    assert metrics.rpcc(still, partner, partner) == pytest.approx(0.5)


def test_correlation_is_numpys():
    first, second = noise((40, 3)), noise((40, 3), 1)
    expected = [np.corrcoef(first[:, d], second[:, d])[0, 1] for d in range(3)]
    np.testing.assert_allclose(metrics.correlation(first, second), expected)


@pytest.mark.parametrize("lag", [-20, 0, 13, 49])
def test_tlcc_finds_how_late_somebody_is(lag):
    long = noise((700, 2))
    partner, clip = long[100:600], long[100 - lag : 600 - lag]
    assert metrics.tlcc_offset(clip, partner) == abs(lag)


def test_windowed_correlation_against_a_loop():
    fps, first, second = 5.0, noise((60, 2)), noise((60, 2), 1)
    curves = metrics.windowed_lagged_correlation(first, second, fps)
    assert curves.shape == (5, 11)  # windows of 20 frames every 10, lags of −5 … 5 frames
    for row, start in enumerate(range(0, 41, 10)):
        for column, lag in enumerate(range(-5, 6)):
            times = [t for t in range(start, start + 20) if 0 <= t + lag < 60]
            expected = np.mean(
                [np.corrcoef(first[[t + lag for t in times], d], second[times, d])[0, 1] for d in range(2)]
            )
            assert curves[row, column] == pytest.approx(expected)


def test_wtlcc_is_zero_for_the_truth_and_blinks_that_come_late_still_match():
    partner, true = noise((300, 2)), noise((300, 2), 1)
    assert metrics.wtlcc_difference(true, true, partner, 25.0) == 0.0
    assert metrics.wtlcc_difference(partner, true, partner, 25.0) > 0.0
    blinks = np.zeros((500, 2))
    blinks[np.arange(20, 480, 40)] = 1.0
    assert metrics.blink_wtlcc(np.roll(blinks, 10, axis=0), blinks, 25.0) > 0.9
    assert metrics.blink_wtlcc(np.zeros_like(blinks), blinks, 25.0) == 0.0


def test_spatiotemporal_distance():
    true, predicted = np.array([[0.0], [1.0], [1.0]]), np.array([[5.0], [5.0], [6.0]])
    # Steps 1, 0 against 0, 1.
    assert metrics.spatiotemporal_distance(predicted, true) == pytest.approx(np.sqrt(2 / 0.1))
    clips = [ClipPair(predicted, true), ClipPair(predicted + 10, true)]
    scores = metrics.score_clips(clips, "expression", 25.0)
    assert scores["sts"].value == pytest.approx(np.sqrt(2 / 0.1))
    # Across the join the truth steps by −1, the prediction by 9.
    assert scores["sts_joined"].value == pytest.approx(np.sqrt((4 + 100) / 0.1))


def test_diversity():
    samples = np.zeros((3, 4, 2))
    samples[2, :, 0] = 3.0
    assert metrics.diversity(samples) == pytest.approx((0 + 3 + 3) / 3)
    with pytest.raises(ValueError):
        metrics.diversity(samples[:1])


def test_freezing():
    true = noise((250, 3))
    predicted = true.copy()
    predicted[100:200] = predicted[100]
    assert metrics.frozen_share(true, true, 25.0) == 0.0
    assert metrics.frozen_share(predicted, true, 25.0) == pytest.approx(0.4)


def test_eye_aspect_ratio_and_its_blinks():
    eye = np.array([[0, 0], [1, 1], [2, 1], [3, 0], [2, -1], [1, -1]], float)
    assert metrics.eye_aspect_ratio(eye[None])[0] == pytest.approx((2 + 2) / 6)
    ratio = np.full(250, 0.3)
    ratio[:3] = ratio[50:53] = ratio[100] = 0.1
    ratio[200] = np.nan
    assert metrics.ear_blinks_per_second(ratio, 25.0) == pytest.approx(3 / 10)
    assert metrics.ear_blinks_per_second(ratio, 25.0, threshold=0.05) == 0.0


def test_pose_is_scored_in_its_parts_and_every_key_has_a_protocol():
    true = noise((300, 6))
    predicted = true + np.array([0.1, 0.1, 0.1, 0.02, 0.02, 0.02])
    scores = metrics.score_clips([ClipPair(predicted, true, noise((300, 6), 2))], "pose", 25.0)
    assert scores["d_rot"].value == pytest.approx(0.1) and scores["d_pos"].value == pytest.approx(0.02)
    extent = np.ptp(true[:, :3], axis=0).mean()
    assert scores["d_rot_percent"].value == pytest.approx(100 * 0.1 / extent)
    assert {"p_fd", "rpcc", "wtlcc", "tlcc_reactface", "si_d_l2l", "si_d_dim", "si_d_dualtalk"} <= set(scores)
    assert set(scores) <= set(metrics.PROTOCOLS)
    assert "p_fd" not in metrics.score_clips([ClipPair(predicted, true)], "pose", 25.0)


def test_clips_are_cut_to_length():
    clip = ClipPair(np.arange(25.0)[:, None], np.arange(25.0)[:, None])
    assert [len(piece.true) for piece in metrics.cut_clips([clip], 10)] == [10, 10]
    assert [len(piece.true) for piece in metrics.cut_clips([clip], 30)] == [25]
