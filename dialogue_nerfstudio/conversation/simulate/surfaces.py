"""Signed distances of the parts of a procedural person: face, mouth, eyes, hair, ears, neck and clothed torso.

Conventions: every function takes a point (x, y, z) in metres and a `rig` record (see `head_model.RIG_DTYPE`) and
returns metres, negative inside. Head parts take points in head space (x towards the person's left, y up, z out of the
nose, origin 0.07 m behind and 0.02 m below the midpoint of the eyes), torso parts in torso space (equal to person
space for an unswayed torso). Unions are smooth (quadratic polynomial minimum), ellipsoids use the first-order distance
k0 (k0 - 1) / k1, so values are bounds good enough to march along, not exact distances.
"""

import math
from typing import no_type_check

import numba as nb

_JIT = dict(fastmath=True, cache=True, nogil=True, error_model="numpy")

FAR = 10.0


@nb.njit(**_JIT)
@no_type_check
def smooth_min(a: float, b: float, k: float) -> float:
    """Polynomial smooth minimum; equals min(a, b) where |a - b| >= k."""
    h = max(k - abs(a - b), 0.0) / k
    return min(a, b) - h * h * k * 0.25


@nb.njit(**_JIT)
@no_type_check
def smooth_max(a: float, b: float, k: float) -> float:
    """Polynomial smooth maximum; equals max(a, b) where |a - b| >= k."""
    h = max(k - abs(a - b), 0.0) / k
    return max(a, b) + h * h * k * 0.25


@nb.njit(**_JIT)
@no_type_check
def smooth_step(low: float, high: float, value: float) -> float:
    """Cubic step from 0 at `low` to 1 at `high`."""
    t = min(max((value - low) / (high - low), 0.0), 1.0)
    return t * t * (3.0 - 2.0 * t)


@nb.njit(**_JIT)
@no_type_check
def mix(a: float, b: float, weight: float) -> float:
    """Linear blend a -> b."""
    return a + (b - a) * weight


@nb.njit(**_JIT)
@no_type_check
def ellipsoid(x: float, y: float, z: float, rx: float, ry: float, rz: float) -> float:
    """First-order distance to an axis-aligned ellipsoid at the origin."""
    x1, y1, z1 = x / rx, y / ry, z / rz
    x2, y2, z2 = x1 / rx, y1 / ry, z1 / rz
    k0 = math.sqrt(x1 * x1 + y1 * y1 + z1 * z1)
    k1 = math.sqrt(x2 * x2 + y2 * y2 + z2 * z2)
    return k0 * (k0 - 1.0) / max(k1, 1e-9)


@nb.njit(**_JIT)
@no_type_check
def capsule(
    x: float, y: float, z: float, ax: float, ay: float, az: float, bx: float, by: float, bz: float, ra: float, rb: float
) -> float:
    """Distance to a capsule from a to b whose radius goes linearly from ra to rb."""
    px, py, pz = x - ax, y - ay, z - az
    ex, ey, ez = bx - ax, by - ay, bz - az
    h = min(max((px * ex + py * ey + pz * ez) / (ex * ex + ey * ey + ez * ez), 0.0), 1.0)
    dx, dy, dz = px - h * ex, py - h * ey, pz - h * ez
    return math.sqrt(dx * dx + dy * dy + dz * dz) - mix(ra, rb, h)


# ---------------------------------------------------------------- face


@nb.njit(**_JIT)
@no_type_check
def brow_offset(x: float, y: float, rig) -> float:
    """Signed distance (m, in the frontal plane) to the eyebrow's band on the side of x; negative inside."""
    raise_outer = rig.brow_raise_left if x > 0.0 else rig.brow_raise_right
    raise_inner = rig.brow_inner_left if x > 0.0 else rig.brow_inner_right
    shift = rig.brow_shift_left if x > 0.0 else rig.brow_shift_right
    ax = abs(x) + shift
    s = (ax - rig.brow_start) / rig.brow_length
    sc = min(max(s, 0.0), 1.0)
    height = rig.brow_height + rig.brow_arch * (1.0 - (sc - 0.6) * (sc - 0.6) * 2.8) + mix(raise_inner, raise_outer, sc)
    half = rig.brow_thickness * (1.0 - 0.75 * sc * sc) * (0.55 + 0.45 * min(sc * 5.0, 1.0))
    dy = abs(y - height) - half
    dx = abs(s - 0.5) * rig.brow_length - 0.5 * rig.brow_length
    return max(dy, dx)


@nb.njit(**_JIT)
@no_type_check
def skin(x: float, y: float, z: float, rig) -> float:
    """Face skin without lids and lips: skull, cheeks, jaw, chin, brow ridge, nose, ears, with carved sockets and
    nostrils."""
    front = smooth_step(-0.04, 0.05, z)
    drop = rig.jaw_drop
    weight = front * smooth_step(-0.030, rig.chin_y + 0.012 - drop, y)
    yr = y + drop * weight
    zr = z + rig.jaw_back * weight
    xr = x - rig.jaw_side * weight
    ax = abs(xr)

    d = ellipsoid(ax, y - 0.045, z + 0.016, rig.skull_x, rig.skull_y, rig.skull_z)
    d = smooth_min(d, ellipsoid(ax, yr + 0.010, zr - 0.010, rig.face_x, 0.075, rig.face_z), 0.03)
    # A part is only evaluated where its blend can reach: elsewhere the smooth minimum equals what is there already.
    if yr < 0.04:
        d = smooth_min(d, ellipsoid(ax, yr + 0.052, zr - 0.016, rig.jaw_x, 0.043, 0.056), 0.035)
        if d > 0.08:
            return d - 0.03
        if yr < 0.0:
            # Jaw angle: from below the ear to the chin.
            d = smooth_min(
                d,
                capsule(ax, yr, zr, rig.jaw_corner_x, -0.050, 0.0, 0.022, rig.chin_y + 0.018, 0.054, 0.013, 0.013),
                0.03,
            )
        if z > 0.0:
            if yr < -0.03:
                d = smooth_min(
                    d,
                    ellipsoid(
                        ax, yr - rig.chin_y - 0.017, zr - rig.chin_z + 0.017, rig.chin_r * 1.25, rig.chin_r, 0.018
                    ),
                    0.026,
                )
            if yr > -0.07:
                cheek_up = rig.cheek_left if x > 0.0 else rig.cheek_right
                d = smooth_min(
                    d,
                    ellipsoid(
                        ax - 0.041,
                        yr + 0.013 - cheek_up,
                        zr - 0.044 - 0.25 * cheek_up,
                        0.020,
                        0.018,
                        0.0205 * rig.cheek_size,
                    ),
                    0.026,
                )
            if yr < 0.01:
                # The muzzle carries the lips forward.
                d = smooth_min(d, ellipsoid(ax, yr + 0.046, zr - 0.052, 0.029, 0.026, rig.muzzle_z), 0.024)
    if z > 0.02:
        if y > 0.0 and y < 0.08:
            ridge_up = 0.4 * (rig.brow_raise_left if x > 0.0 else rig.brow_raise_right)
            d = smooth_min(
                d, capsule(ax, y, z, 0.010, 0.037, 0.068, 0.045, 0.040 + ridge_up, 0.053, 0.0095, 0.0085), 0.014
            )
            # Socket before the nose, so that the bridge keeps its width.
            d = smooth_max(
                d,
                -ellipsoid(ax - rig.eye_x - 0.001, y - rig.eye_y, z - rig.eye_z - 0.013, 0.0172, 0.0132, 0.0170),
                0.010,
            )
            if y > 0.015 and y < 0.065 and d < 0.02:
                d -= 0.0016 * smooth_step(0.003, -0.002, brow_offset(x, y, rig))
        if ax < 0.06 and y < 0.08 and y > -0.075:
            n = capsule(
                ax,
                y,
                z,
                0.0,
                0.030,
                0.070,
                0.0,
                rig.nose_tip_y + 0.006,
                rig.nose_tip_z - 0.009,
                0.0075,
                rig.nose_r * 0.9,
            )
            if y < 0.03:
                n = smooth_min(
                    n,
                    ellipsoid(ax, y - rig.nose_tip_y, z - rig.nose_tip_z + 0.010, rig.nose_r * 1.1, rig.nose_r, 0.0105),
                    0.008,
                )
                ala_y = rig.nose_tip_y - 0.004 + rig.nose_wrinkle
                n = smooth_min(
                    n,
                    ellipsoid(ax - rig.nose_width, y - ala_y, z - rig.nose_tip_z + 0.020, 0.0068, 0.0066, 0.0095),
                    0.007,
                )
                d = smooth_min(d, n, 0.012)
                nostril = ellipsoid(
                    ax - rig.nose_width * 0.60, y - ala_y + 0.0068, z - rig.nose_tip_z + 0.015, 0.0036, 0.0028, 0.0060
                )
                d = smooth_max(d, -nostril, 0.0025)
            else:
                d = smooth_min(d, n, 0.012)
    # Ears.
    ex = ax - rig.ear_x
    if ex > -0.03 and abs(y) < 0.06 and abs(z + 0.022) < 0.05:
        tilt = z + 0.022 + 0.25 * (y - 0.002)
        ear = ellipsoid(ex - 0.35 * (-tilt) * 0.5, y - 0.002, tilt, 0.0085, 0.031 * rig.ear_size, 0.018 * rig.ear_size)
        ear = smooth_max(
            ear, -ellipsoid(ex - 0.010, y - 0.004, tilt - 0.003, 0.008, 0.020 * rig.ear_size, 0.0105), 0.005
        )
        d = smooth_min(d, ear, 0.006)
    return d


@nb.njit(**_JIT)
@no_type_check
def lip_coordinate(x: float, rig) -> float:
    """Position along the mouth: -1 at the right corner, 0 in the middle, 1 at the left corner."""
    u = x - rig.mouth_x
    return u / rig.corner_x_left if u > 0.0 else u / rig.corner_x_right


@nb.njit(**_JIT)
@no_type_check
def lip_line(s: float, rig) -> float:
    """Height at which the closed lips meet at lip coordinate s."""
    corner = rig.corner_y_left if s > 0.0 else rig.corner_y_right
    c = min(abs(s), 1.0)
    return rig.mouth_y + (corner - rig.mouth_y) * c * c * (1.6 - 0.6 * c)


@nb.njit(**_JIT)
@no_type_check
def lip_gap(s: float, rig) -> float:
    """Fraction of the mid-line opening that is left at lip coordinate s."""
    t = max(1.0 - s * s, 0.0)
    return math.sqrt(t) * (0.35 + 0.65 * t) if t > 0.0 else 0.0


@nb.njit(**_JIT)
@no_type_check
def lip_depth(s: float, rig) -> float:
    """Depth (z) of the lips' meeting line at lip coordinate s."""
    s2 = s * s
    return rig.lip_z - rig.lip_curve * s2 - rig.lip_curve_more * s2 * s2


@nb.njit(**_JIT)
@no_type_check
def aperture(x: float, y: float, rig) -> float:
    """Signed distance in the frontal plane to the opening between the lips, negative inside."""
    s = lip_coordinate(x, rig)
    line = lip_line(s, rig)
    gap = lip_gap(s, rig)
    past_corner = max(abs(s) - 1.0, 0.0) * 0.025
    return max(y - line - rig.open_up * gap, line - rig.open_low * gap - y) + past_corner


@nb.njit(**_JIT)
@no_type_check
def lips(x: float, y: float, z: float, rig) -> float:
    """The two lips: elliptic tubes along the edges of the mouth opening, tapering into the corners."""
    s = lip_coordinate(x, rig)
    c = min(max(s, -1.0), 1.0)
    over = (abs(s) - abs(c)) * (rig.corner_x_left if s > 0.0 else rig.corner_x_right)
    line, gap, depth = lip_line(c, rig), lip_gap(c, rig), lip_depth(c, rig)
    taper = math.sqrt(max(1.0 - c * c, 0.0))
    upper = rig.lip_upper * (0.13 + 0.87 * taper)
    lower = rig.lip_lower * (0.13 + 0.87 * taper)
    # Cupid's bow: the middle of the upper lip dips a little.
    bow = 1.0 - 0.22 * math.exp(-c * c * 40.0) - 0.15 * c * c
    yu = y - line - rig.open_up * gap - upper * 0.80 * bow
    yl = y - line + rig.open_low * gap + lower * 0.85
    zl = z - depth + 0.0075 - 0.0030 * taper
    du = ellipsoid(over, yu, zl, 0.0012, upper * bow, 0.0075)
    dl = ellipsoid(over, yl, zl + rig.lower_back, 0.0012, lower, 0.0080)
    return min(du, dl)


@nb.njit(**_JIT)
@no_type_check
def mouth_cavity(x: float, y: float, z: float, rig) -> float:
    """The dark space behind the lips that is cut out of the face."""
    a = aperture(x, y, rig)
    return max(a, rig.lip_z - 0.052 - z)


@nb.njit(**_JIT)
@no_type_check
def teeth(x: float, y: float, z: float, rig) -> float:
    """Upper and lower rows of teeth, the lower moving with the jaw."""
    arch = z + 14.0 * x * x
    zt = abs(arch - rig.lip_z + 0.0165) - 0.0035
    up = max(max(zt, abs(y - rig.teeth_y) - 0.0048), abs(x) - 0.021)
    low = max(max(zt + 0.001, abs(y - rig.teeth_low_y) - 0.0042), abs(x - rig.jaw_side * 0.7) - 0.018)
    return min(up, low) - 0.001


@nb.njit(**_JIT)
@no_type_check
def tongue(x: float, y: float, z: float, rig) -> float:
    """The tongue, resting behind the lower teeth."""
    return ellipsoid(x - rig.jaw_side * 0.7, y - rig.teeth_low_y + 0.003, z - rig.lip_z + 0.036, 0.017, 0.0065, 0.016)


@nb.njit(**_JIT)
@no_type_check
def lid_edges(ax: float, rig, left: bool):
    """Elevations (rad) of the upper and lower lid edge at distance ax (m) from the eye's own axis towards the
    temple."""
    s = (ax - 0.0004) / rig.eye_half_width
    t = max(1.0 - s * s, 0.0)
    # A rounder upper edge whose highest point sits slightly towards the nose.
    shape = t**0.72 * (1.0 - 0.13 * s)
    low_shape = t**0.85 * (1.0 + 0.10 * s)
    corner = rig.eye_tilt * s
    upper = corner + (rig.lid_upper_left if left else rig.lid_upper_right) * shape
    lower = corner - (rig.lid_lower_left if left else rig.lid_lower_right) * low_shape
    return upper, lower


@nb.njit(**_JIT)
@no_type_check
def lid_opening(x: float, y: float, z: float, rig) -> float:
    """Distance (m, along the eyeball) into the opening between the lids, positive inside it."""
    left = x > 0.0
    ax = abs(x) - rig.eye_x
    upper, lower = lid_edges(ax, rig, left)
    elevation = math.atan2(y - rig.eye_y, max(z - rig.eye_z, 1e-4))
    return min(upper - elevation, elevation - lower) * rig.eye_r


@nb.njit(**_JIT)
@no_type_check
def lids(x: float, y: float, z: float, rig) -> float:
    """Eyelids: a shell just outside the eyeball, cut open between the lid edges."""
    shell = ellipsoid(
        abs(x) - rig.eye_x, y - rig.eye_y, z - rig.eye_z, rig.eye_r * 1.16, rig.eye_r + 0.0017, rig.eye_r + 0.0017
    )
    return smooth_max(shell, lid_opening(x, y, z, rig), 0.0012)


@nb.njit(**_JIT)
@no_type_check
def eyeball(x: float, y: float, z: float, rig) -> float:
    """The eyeball on the side of x."""
    ax = abs(x) - rig.eye_x
    dy, dz = y - rig.eye_y, z - rig.eye_z
    return math.sqrt(ax * ax + dy * dy + dz * dz) - rig.eye_r


# ---------------------------------------------------------------- hair


@nb.njit(**_JIT)
@no_type_check
def hash_noise(i: int, j: int, k: int) -> float:
    """Repeatable pseudo-random value in [0, 1) of an integer lattice point."""
    h = (i * 374761393 + j * 668265263 + k * 2147483647) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) / 65536.0


@nb.njit(**_JIT)
@no_type_check
def value_noise(x: float, y: float, z: float) -> float:
    """Trilinear value noise in [0, 1) with cubic weights; one lattice cell per unit."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    i, j, k = int(fx), int(fy), int(fz)
    u, v, w = x - fx, y - fy, z - fz
    u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
    a = mix(
        mix(hash_noise(i, j, k), hash_noise(i + 1, j, k), u),
        mix(hash_noise(i, j + 1, k), hash_noise(i + 1, j + 1, k), u),
        v,
    )
    b = mix(
        mix(hash_noise(i, j, k + 1), hash_noise(i + 1, j, k + 1), u),
        mix(hash_noise(i, j + 1, k + 1), hash_noise(i + 1, j + 1, k + 1), u),
        v,
    )
    return mix(a, b, w)


@nb.njit(**_JIT)
@no_type_check
def hair(x: float, y: float, z: float, rig) -> float:
    """Hair: a cap over the skull with a carved face window, optional side curtains, quiff, bun and curls."""
    if rig.hair_volume <= 0.0:
        return FAR
    # Face window: an arch whose top is notched at the parting, and the opening beside the cheeks.
    wx = x - rig.part_x
    rise = rig.hairline + rig.part_notch * math.exp(-wx * wx * 900.0)
    window = ellipsoid(x, y - rise + 0.088, z - 0.100, rig.window_x, 0.088, 0.088)
    window = min(
        window, max(ellipsoid(x, y + 0.040, z - 0.085, rig.window_x * rig.window_low, 0.13, rig.window_depth), y - 0.02)
    )
    # So deep inside the window nothing else matters, not even to the occlusion of the skin there.
    if window < -0.05:
        return -window
    v = rig.hair_volume
    long_hair = rig.hair_length > 0.0
    d = ellipsoid(x, y - 0.048, z + 0.019, rig.skull_x + v, rig.skull_y + v, rig.skull_z + v)
    # Short hair ends in a line that falls from the temple to the nape.
    d = smooth_max(d, rig.hair_nape - 0.35 * z - y, 0.012)
    if long_hair:
        low = 0.045 - rig.hair_length
        ax = abs(x)
        c = capsule(
            ax, y, z, 0.054 + 0.3 * v, 0.06, -0.012, 0.062 + rig.hair_flare, low + 0.02, -0.004, 0.028, rig.hair_tip
        )
        c = smooth_min(
            c,
            ellipsoid(
                x, y - 0.5 * (0.05 + low), z + 0.056, 0.064 + 0.5 * rig.hair_flare, 0.5 * rig.hair_length + 0.05, 0.042
            ),
            0.03,
        )
        d = smooth_max(smooth_min(d, c, 0.035), low - y, 0.014)
    if rig.quiff > 0.0:
        q = ellipsoid(x - rig.part_x * 0.6, y - 0.112, z - 0.048, 0.054, 0.016 + 0.6 * rig.quiff, 0.034)
        d = smooth_min(d, q, 0.03)
    if rig.bun > 0.0:
        d = smooth_min(d, ellipsoid(x, y - 0.136, z + 0.050, rig.bun, rig.bun * 0.9, rig.bun), 0.01)
    if d > 0.012:
        return max(d, -window)
    if d > -0.012:
        if rig.curl > 0.0:
            d -= rig.curl * (value_noise(x * 70.0, y * 70.0, z * 70.0) - 0.5) * 2.0
        if rig.strand_depth > 0.0:
            around = math.atan2(x - rig.part_x, z + 0.02) if long_hair else math.atan2(x - rig.part_x, y - 0.03)
            along = y if long_hair else z
            lock = value_noise(around * rig.strand_count * 0.32 + along * rig.strand_bend, along * 12.0, rig.seed)
            d -= rig.strand_depth * (3.2 * lock - 1.6)
    return smooth_max(d, -window, 0.010)


@nb.njit(**_JIT)
@no_type_check
def head(x: float, y: float, z: float, rig) -> float:
    """Everything that moves rigidly with the head, with its mouth, lids and brows as posed."""
    bound = math.sqrt(x * x + (y - 0.025) * (y - 0.025) + (z + 0.01) * (z + 0.01)) - rig.head_bound
    if bound > 0.06:
        return bound
    d = skin(x, y, z, rig)
    if z > 0.03:
        if y < rig.mouth_y + 0.03 and y > rig.mouth_y - 0.03 - rig.open_low and abs(x) < 0.05 and d < 0.02:
            d = smooth_min(d, lips(x, y, z, rig), 0.0045)
            if rig.open_up + rig.open_low > 1e-4:
                d = smooth_max(d, -mouth_cavity(x, y, z, rig), 0.002)
                if d > -0.02:
                    d = min(d, max(min(teeth(x, y, z, rig), tongue(x, y, z, rig)), rig.lip_z - 0.05 - z))
        ex, ey = abs(x) - rig.eye_x, y - rig.eye_y
        if ex * ex + ey * ey < 0.0009 and d < 0.03:
            ball = eyeball(x, y, z, rig)
            d = smooth_min(d, lids(x, y, z, rig), 0.005) if ball < 0.03 else d
            # The smooth union must not bridge the opening.
            if ball < 0.004:
                d = max(d, min(lid_opening(x, y, z, rig), ball + 0.004))
            d = min(d, ball)
    return min(d, hair(x, y, z, rig))


# ---------------------------------------------------------------- neck and torso


@nb.njit(**_JIT)
@no_type_check
def neck(x: float, y: float, z: float, rig) -> float:
    """The neck in person space: two capsules from the swaying torso to the moving head, so that it follows both."""
    d = capsule(
        x,
        y,
        z,
        rig.neck_base_x,
        rig.neck_base_y,
        rig.neck_base_z,
        rig.neck_mid_x,
        rig.neck_mid_y,
        rig.neck_mid_z,
        rig.neck_r * 1.08,
        rig.neck_r,
    )
    e = capsule(
        x,
        y,
        z,
        rig.neck_mid_x,
        rig.neck_mid_y,
        rig.neck_mid_z,
        rig.neck_top_x,
        rig.neck_top_y,
        rig.neck_top_z,
        rig.neck_r,
        rig.neck_r * 0.94,
    )
    return smooth_min(d, e, 0.02)


@nb.njit(**_JIT)
@no_type_check
def torso_body(x: float, y: float, z: float, rig) -> float:
    """Chest, shoulders and trapezius in torso space, without collar."""
    ax = abs(x)
    d = ellipsoid(ax, y + 0.345, z + 0.030, rig.chest_x, 0.170, 0.105)
    d = smooth_min(
        d, capsule(ax, y, z, 0.055, -0.190, -0.040, rig.shoulder_x, rig.shoulder_y, -0.045, 0.045, 0.052), 0.05
    )
    d = smooth_min(
        d,
        capsule(ax, y, z, rig.shoulder_x, rig.shoulder_y, -0.045, rig.shoulder_x + 0.035, -0.44, -0.03, 0.052, 0.047),
        0.03,
    )
    d = smooth_min(d, capsule(ax, y, z, 0.030, -0.125, -0.058, 0.100, -0.180, -0.050, 0.022, 0.030), 0.04)
    return d


@nb.njit(**_JIT)
@no_type_check
def collar(x: float, y: float, z: float, rig) -> float:
    """Collar by clothing style: ribbed ring (0), shirt collar (1), hood (2), lapels (3)."""
    style = rig.clothing
    ax = abs(x)
    zc = z + 0.036
    if style == 0:
        yr = y + 0.150 + 0.55 * zc
        ring = math.sqrt(ax * ax + zc * zc * 0.95) - rig.neck_r * 1.20
        return math.sqrt(ring * ring + (yr * 0.62) ** 2) - 0.0085
    if style == 1:
        # Two stiff leaves: a cone around the neck, open in front, whose lower edge falls into points.
        yr = y + 0.142 + 0.45 * zc
        ring = abs(math.sqrt(ax * ax + zc * zc) - rig.neck_r * 1.14 + 0.42 * yr) - 0.0035
        front = smooth_step(-0.01, 0.05, zc)
        low = -0.020 - 0.024 * front * smooth_step(0.050, 0.020, ax)
        band = max(yr - 0.016 + 0.02 * front, low - yr)
        gap = 0.006 + 0.50 * max(-yr, 0.0) - ax if zc > 0.0 else -FAR
        return max(max(ring, band), gap) * 0.8
    if style == 2:
        yr = y + 0.158 + 0.50 * zc
        ring = math.sqrt(ax * ax + zc * zc * 0.85) - rig.neck_r * 1.38
        fold = 0.020 + 0.008 * smooth_step(0.02, -0.05, zc)
        return smooth_max(
            (math.sqrt(ring * ring + (yr * 0.55) ** 2) - fold) * 0.8, 0.011 - ax if zc > 0.0 else -FAR, 0.01
        )
    body = torso_body(x, y, z, rig)
    edge = lapel(x, y)
    return max(body - 0.006, edge) * 0.8 if z > -0.05 else FAR


@nb.njit(**_JIT)
@no_type_check
def lapel(x: float, y: float) -> float:
    """Signed distance in the frontal plane to a blazer's front, negative on the cloth."""
    return 0.008 + 0.36 * max(y + 0.33, 0.0) - abs(x)


@nb.njit(**_JIT)
@no_type_check
def neckline(x: float, y: float, z: float, rig) -> float:
    """Negative where the clothes leave the chest bare."""
    if rig.clothing == 1:
        return abs(x) - 0.45 * (y + 0.215)
    return math.sqrt(x * x + (y + 0.128) * (y + 0.128)) - rig.neckline_r


@nb.njit(**_JIT)
@no_type_check
def torso(x: float, y: float, z: float, rig) -> float:
    """Clothed torso in torso space."""
    bound = ellipsoid(x, y + 0.36, z + 0.03, rig.shoulder_x + 0.16, 0.29, 0.20)
    if bound > 0.08:
        return bound * 0.8
    d = torso_body(x, y, z, rig)
    c = math.sqrt(x * x + (y + 0.15) * (y + 0.15) + (z + 0.03) * (z + 0.03)) - 0.14
    if rig.clothing == 3:
        d = min(d, collar(x, y, z, rig))
    elif c < 0.02:
        d = smooth_min(d, collar(x, y, z, rig), 0.006)
    if rig.buttons > 0 and z > 0.0 and abs(x) < 0.02 and d < 0.02:
        pitch = 0.055
        row = (y + 0.235) / pitch
        row = min(math.floor(row + 0.5), 0.0)
        by = y + 0.235 - row * pitch
        if math.sqrt(x * x + by * by) < 0.0075:
            d -= 0.0022
    return d


HEAD_PART, NECK_PART, TORSO_PART = 1, 2, 4
WHOLE = HEAD_PART | NECK_PART | TORSO_PART


@nb.njit(**_JIT)
@no_type_check
def scene(
    x: float, y: float, z: float, head_rotation, head_translation, torso_rotation, torso_translation, rig, parts: int
) -> float:
    """Distance to the named parts of the person (a bit set, `WHOLE` for all) at a person-space point."""
    d = FAR
    if parts & HEAD_PART:
        px, py, pz = x - head_translation[0], y - head_translation[1], z - head_translation[2]
        hx = head_rotation[0, 0] * px + head_rotation[1, 0] * py + head_rotation[2, 0] * pz
        hy = head_rotation[0, 1] * px + head_rotation[1, 1] * py + head_rotation[2, 1] * pz
        hz = head_rotation[0, 2] * px + head_rotation[1, 2] * py + head_rotation[2, 2] * pz
        d = head(hx, hy, hz, rig)
    if y < 0.03 and parts & NECK_PART:
        d = smooth_min(d, neck(x, y, z, rig), 0.012)
    if parts & TORSO_PART:
        if y < 0.02:
            qx, qy, qz = x - torso_translation[0], y - torso_translation[1], z - torso_translation[2]
            tx = torso_rotation[0, 0] * qx + torso_rotation[1, 0] * qy + torso_rotation[2, 0] * qz
            ty = torso_rotation[0, 1] * qx + torso_rotation[1, 1] * qy + torso_rotation[2, 1] * qz
            tz = torso_rotation[0, 2] * qx + torso_rotation[1, 2] * qy + torso_rotation[2, 2] * qz
            d = smooth_min(d, torso(tx, ty, tz, rig), 0.004)
        else:
            # The torso's highest point stays below y = -0.05.
            d = min(d, y + 0.05)
    return d
