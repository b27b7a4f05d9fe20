"""Finds where the tracker's 478 landmarks lie on another face model's mesh, from the two shapes alone or with a few
known landmarks.

Conventions. A mesh is `vertices` [V, 3] and `triangles` [F, 3]; its axes are those of head space (x towards the
person's left, y up, z out of the nose), in any unit and place. A place on a mesh is a `Correspondence`: three vertex
numbers and their barycentric weights a landmark. `known` maps landmarks of the tracker to places on the mesh.

The recipe: a similarity (through the known landmarks, else by trimmed closest points from several starts) → the
canonical face is bent onto the mesh, ever more softly, each landmark towards the closest point whose normal agrees
(non-rigid closest points with a bending energy, after Amberg, Romdhani & Vetter 2007) → the closest places. Lips touch
where surfaces are closest, so a landmark of one lip may only meet the part of the mesh that is nearer, along edges, to
that lip.
"""

from dataclasses import dataclass
from typing import Dict, Optional, Tuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, dijkstra
from scipy.spatial import cKDTree

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import (
    LEFT_EYE_LOWER,
    LEFT_EYE_UPPER,
    LOWER_LIP_BETWEEN,
    LOWER_LIP_INNER,
    LOWER_LIP_OUTER,
    RIGHT_EYE_LOWER,
    RIGHT_EYE_UPPER,
    UPPER_LIP_BETWEEN,
    UPPER_LIP_INNER,
    UPPER_LIP_OUTER,
    eye_centers,
    face_triangles,
    mean_face,
)
from dialogue_nerfstudio.process.head_pose import fit_similarity

NUM_SURFACE = 468
"""Landmarks on the skin; the other ten are the irises."""

NOSE_TIP = 4

IBUG_TO_LANDMARK = {
    27: 168,
    30: 4,
    33: 2,
    36: 33,
    37: 160,
    38: 158,
    39: 133,
    40: 153,
    41: 144,
    42: 362,
    43: 385,
    44: 387,
    45: 263,
    46: 373,
    47: 380,
    48: 61,
    51: 0,
    54: 291,
    57: 17,
    60: 78,
    62: 13,
    64: 308,
    66: 14,
}
"""Points of the 68-point mark-up (counted from 0) that are one of the tracker's landmarks."""

STIFFNESS = (30.0, 10.0, 3.0, 1.0)
"""Weights of the bending energy, one after the other."""

KNOWN_WEIGHT = 20.0
"""How much more a known landmark pulls than a closest point."""

NOSE = (1, 4, 5, 195)

MAX_NOSE_DISTANCE = 0.008
"""Largest mean distance (metres) of the nose's ridge and tip after the similarity: an egg has no nose."""

MAX_RIGID_DISTANCE = 0.005
"""Largest median distance (metres, on a face of 63 mm between the eyes) between the canonical face and a face model
after the similarity."""

MAX_DISTANCE = 0.0015
"""Largest root mean square distance after bending."""

Surface = Tuple[Int[np.ndarray, "f 3"], Float[np.ndarray, "v 3"]]


@dataclass
class Correspondence:
    """Where each of the 478 landmarks lies on a mesh."""

    corners: Int[np.ndarray, "478 3"]
    """Vertices of the mesh."""
    weights: Float[np.ndarray, "478 3"]
    """Their barycentric weights; a row sums to 1."""
    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]
    """The similarity from the mesh to head space: x_head = s R x_mesh + t."""
    rigid_distance: float
    """Median distance after the similarity, metres."""
    distance: float
    """Root mean square distance after bending, metres."""

    def take(self, field: Float[np.ndarray, "*batch v dims"]) -> Float[np.ndarray, "*batch 478 dims"]:
        """Values at the landmarks of a field that is given at the vertices."""
        return np.einsum("...nkd,nk->...nd", field[..., self.corners, :], self.weights)


def vertex_normals(vertices: Float[np.ndarray, "v 3"], triangles: Int[np.ndarray, "f 3"]) -> Float[np.ndarray, "v 3"]:
    """Unit normals, each triangle weighing as much as its area."""
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    face = np.cross(b - a, c - a)
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, triangles[:, k], face)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def closest_in_triangles(
    points: Float[np.ndarray, "n 3"], corners: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, "n 3"]:
    """Barycentric weights of the point of each triangle `corners` [n, vertex, 3] that is closest to each point.

    The foot of the perpendicular where it falls inside, else the best of the three edges.
    """
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    ab, ac, ap = b - a, c - a, points - a
    d00, d01, d11 = (ab * ab).sum(1), (ab * ac).sum(1), (ac * ac).sum(1)
    d20, d21 = (ap * ab).sum(1), (ap * ac).sum(1)
    determinant = np.maximum(d00 * d11 - d01**2, 1e-30)
    v, w = (d11 * d20 - d01 * d21) / determinant, (d00 * d21 - d01 * d20) / determinant
    best = np.stack([1 - v - w, v, w], axis=1)
    outside = (best < 0).any(axis=1)
    least = np.full(len(points), np.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        edge = corners[:, j] - corners[:, i]
        along = ((points - corners[:, i]) * edge).sum(1) / np.maximum((edge**2).sum(1), 1e-30)
        weights = np.zeros_like(best)
        weights[:, j] = np.clip(along, 0.0, 1.0)
        weights[:, i] = 1.0 - weights[:, j]
        distance = ((points - np.einsum("nk,nkd->nd", weights, corners)) ** 2).sum(1)
        closer = outside & (distance < least)
        best[closer], least[closer] = weights[closer], distance[closer]
    return best


class _Surface:
    """A mesh that can be asked for the closest place, with conditions."""

    def __init__(self, vertices: np.ndarray, triangles: np.ndarray):
        self.vertices, self.triangles = vertices, triangles
        a, b, c = (vertices[triangles[:, k]] for k in range(3))
        normals = np.cross(b - a, c - a)
        self.normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        self.tree = cKDTree((a + b + c) / 3)

    def closest(
        self,
        points: Float[np.ndarray, "n 3"],
        normals: Optional[Float[np.ndarray, "n 3"]] = None,
        allowed: Optional[Bool[np.ndarray, "n f"]] = None,
        candidates: int = 40,
    ) -> Tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
        """Triangle, barycentric weights and distance. A place whose normal disagrees counts as farther away."""
        count = min(candidates, len(self.triangles))
        found = self.tree.query(points, k=count)[1].reshape(len(points), count)
        flat = found.reshape(-1)
        repeated = np.repeat(points, count, axis=0)
        corners = self.vertices[self.triangles[flat]]
        weights = closest_in_triangles(repeated, corners)
        distance = np.linalg.norm(repeated - np.einsum("nk,nkd->nd", weights, corners), axis=1).reshape(found.shape)
        cost = distance.copy()
        if normals is not None:
            agreement = np.einsum("nkd,nd->nk", self.normals[found], normals)
            cost += 0.010 * np.clip(0.5 - agreement, 0.0, None)
        if allowed is not None:
            cost += np.where(np.take_along_axis(allowed, found, axis=1), 0.0, 1.0)
        best = cost.argmin(axis=1)
        rows = np.arange(len(points))
        return found[rows, best], weights.reshape(*found.shape, 3)[rows, best], distance[rows, best]


def _lip_sides() -> Int[np.ndarray, " 468"]:
    """+1 for landmarks of the upper lip only, −1 for the lower only, 0 elsewhere and at the corners."""
    sides = np.zeros(NUM_SURFACE, int)
    upper = set(UPPER_LIP_OUTER + UPPER_LIP_INNER + UPPER_LIP_BETWEEN)
    lower = set(LOWER_LIP_OUTER + LOWER_LIP_INNER + LOWER_LIP_BETWEEN)
    sides[list(upper - lower)] = 1
    sides[list(lower - upper)] = -1
    return sides


def _edge_graph(vertices: np.ndarray, triangles: np.ndarray) -> csr_matrix:
    edges = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]])
    lengths = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
    graph = csr_matrix((np.maximum(lengths, 1e-9), (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    return graph.maximum(graph.T)


def _bending(triangles: np.ndarray, count: int) -> Float[np.ndarray, "n n"]:
    """LᵀL of the mesh's uniform Laplacian L."""
    laplacian = np.zeros((count, count))
    for i, j in ((0, 1), (1, 2), (2, 0)):
        laplacian[triangles[:, i], triangles[:, j]] = -1.0
        laplacian[triangles[:, j], triangles[:, i]] = -1.0
    degree = -laplacian.sum(axis=1)
    laplacian[np.arange(count), np.arange(count)] = degree
    laplacian /= np.maximum(degree, 1.0)[:, None]
    return laplacian.T @ laplacian


def _similarity(known_from: np.ndarray, known_to: np.ndarray) -> Tuple[float, np.ndarray, np.ndarray]:
    scale, rotation, translation = fit_similarity(known_from, known_to)
    return float(scale), rotation, translation


def _aligned_by_shape(vertices: np.ndarray, triangles: np.ndarray) -> Tuple[float, np.ndarray, np.ndarray]:
    """Mesh → head space by trimmed closest points, from a few sizes: scale, rotation, translation."""
    face = mean_face()[:NUM_SURFACE]
    center = np.median(vertices, axis=0)
    near_middle = np.abs(vertices[:, 0] - center[0]) < 0.15 * np.ptp(vertices[:, 0])
    # In front of the middle line: the nose tip is the foremost point, and the chin and the brow are not far behind.
    middle = vertices[near_middle]
    tip = middle[middle[:, 2].argmax()]
    best = (1.0, np.eye(3), np.zeros(3), np.inf)
    some, every = np.arange(0, NUM_SURFACE, 3), np.arange(NUM_SURFACE)
    normals = vertex_normals(face, face_triangles())
    # One search structure, about in metres, serves all starts: the face is carried to it instead of it to the face.
    unit = 0.170 / np.ptp(vertices[:, 0])
    surface, tip = _Surface(unit * vertices, triangles), unit * tip
    for start in (0.88, 1.0, 1.15):
        scale, rotation, translation = start, np.eye(3), face[NOSE_TIP] - start * tip
        for subset, rounds in ((some, 25), (every, 15)):
            for _ in range(rounds):
                back = (face[subset] - translation) @ rotation / scale
                found, weights, distance = surface.closest(back, normals[subset] @ rotation, candidates=12)
                target = np.einsum("nk,nkd->nd", weights, surface.vertices[surface.triangles[found]])
                close = distance <= np.quantile(distance, 0.85)
                s, rotation, _ = _similarity(target[close], face[subset][close])
                # A surface that grows or shrinks at once would fold onto its nearest part.
                new = float(np.clip(s, 0.97 * scale, 1.03 * scale))
                translation = face[subset][close].mean(axis=0) - new * rotation @ target[close].mean(axis=0)
                settled, scale = abs(new / scale - 1) < 1e-4, new
                if settled:
                    break
        median = float(np.median(scale * distance))
        if median < best[3]:
            best = (scale * unit, rotation, translation, median)
    return best[:3]


def register(
    vertices: Float[np.ndarray, "v 3"],
    triangles: Int[np.ndarray, "f 3"],
    where: str,
    known: Optional[Dict[int, Tuple[np.ndarray, np.ndarray]]] = None,
) -> Correspondence:
    """Where the tracker's landmarks lie on a face model's mean mesh.

    Args:
        vertices, triangles: the mesh.
        where: what to call the model in messages.
        known: landmark → (three vertices, three weights) for as many as are known.

    Raises:
        DialogueError: the mesh is damaged, or is not a face.
    """
    _check_mesh(vertices, triangles, where)
    known = known or {}
    inside = [i for i, (corners, _) in known.items() if i < NUM_SURFACE and (np.asarray(corners) < len(vertices)).all()]
    if len(inside) != len([i for i in known if i < NUM_SURFACE]):
        raise DialogueError(f"{where}: its landmarks name vertices that the mesh does not have; give matching files.")
    places = np.array([np.asarray(known[i][1]) @ vertices[np.asarray(known[i][0])] for i in inside]).reshape(-1, 3)
    face = mean_face()[:NUM_SURFACE]

    used, triangles = _main_part(vertices, triangles, known, inside)
    own = vertices[used]
    renumber = np.full(len(vertices), -1)
    renumber[used] = np.arange(len(used))
    own_triangles = renumber[triangles]
    if len(inside) >= 5:
        scale, rotation, translation = _similarity(places, face[inside])
        aligned = scale * own @ rotation.T + translation
    else:
        scale, rotation, translation = _aligned_by_shape(own, own_triangles)
        aligned = scale * own @ rotation.T + translation
    surface = _Surface(aligned, own_triangles)
    distance = surface.closest(face)[2]
    rigid = float(np.median(distance))
    if rigid > MAX_RIGID_DISTANCE or distance[list(NOSE)].mean() > MAX_NOSE_DISTANCE:
        raise DialogueError(
            f"{where}: the mesh does not look like a face with y up and z out of the nose (the tracker's face stays "
            f"{1e3 * rigid:.1f} mm away from it, its nose {1e3 * distance[list(NOSE)].mean():.1f} mm); give a face "
            "model, or its 68 landmarks with --face-model-landmarks."
        )
    targets = scale * places @ rotation.T + translation
    found, weights, distance = _bend(surface, inside, targets)
    rms = float(np.sqrt(np.mean(distance**2)))
    if rms > MAX_DISTANCE:
        raise DialogueError(
            f"{where}: the tracker's face cannot be matched to this mesh (it stays {1e3 * rms:.1f} mm away after "
            "bending); give a face model, or its 68 landmarks with --face-model-landmarks."
        )
    corners = used[own_triangles[found]]
    for landmark in inside:
        corners[landmark] = known[landmark][0]
        weights[landmark] = known[landmark][1]
    iris_corners, iris_weights = _irises(corners, weights)
    return Correspondence(
        np.concatenate([corners, iris_corners]),
        np.concatenate([weights, iris_weights]),
        scale,
        rotation,
        translation,
        rigid,
        rms,
    )


def _check_mesh(vertices: np.ndarray, triangles: np.ndarray, where: str) -> None:
    if vertices.ndim != 2 or vertices.shape[1] != 3 or len(vertices) < 100 or len(triangles) < 100:
        raise DialogueError(f"{where}: a mesh of {len(vertices)} vertices and {len(triangles)} faces is no face model.")
    if not np.isfinite(vertices).all():
        bad = int(np.argmin(np.isfinite(vertices).all(axis=1)))
        raise DialogueError(f"{where}: vertex {bad} of the mean face is not a number; get the file again.")
    if triangles.min() < 0 or triangles.max() >= len(vertices):
        raise DialogueError(f"{where}: its faces name vertices that do not exist; get the file again.")


def _main_part(vertices, triangles, known, inside) -> Tuple[np.ndarray, np.ndarray]:
    """The connected part with the known landmarks, else the largest: eyeballs, teeth and lashes are others."""
    edges = np.concatenate([triangles[:, :2], triangles[:, 1:]])
    graph = csr_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(vertices),) * 2)
    labels = connected_components(graph, directed=False)[1]
    counted = labels[[np.asarray(known[i][0])[0] for i in inside]] if inside else labels[triangles[:, 0]]
    main = np.bincount(counted).argmax()
    kept = triangles[labels[triangles[:, 0]] == main]
    return np.unique(kept), kept


def _bend(
    surface: _Surface, inside: list, targets: Float[np.ndarray, "k 3"]
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The canonical face bent onto the surface: triangles, barycentric weights and distances of 468 landmarks."""
    face = mean_face()[:NUM_SURFACE]
    bending = _bending(face_triangles(), NUM_SURFACE)
    shape, allowed = face.copy(), None
    pull = np.zeros(NUM_SURFACE)
    pull[inside] = KNOWN_WEIGHT
    aim = np.zeros_like(face)
    if inside:
        aim[inside] = targets
    lids = list(LEFT_EYE_UPPER + LEFT_EYE_LOWER + RIGHT_EYE_UPPER + RIGHT_EYE_LOWER)
    for stage, stiffness in enumerate(STIFFNESS):
        for _ in range(6):
            normals = vertex_normals(shape, face_triangles())
            found, weights, distance = surface.closest(shape, normals, allowed)
            target = np.einsum("nk,nkd->nd", weights, surface.vertices[surface.triangles[found]])
            # Where the mesh ends (a cut neck, an open eye, the cut behind the ears) closest points pile up at its rim.
            trust = 1.0 / (1.0 + (distance / 0.006) ** 2)
            trust[lids] *= 0.3
            system = stiffness * bending + np.diag(trust + pull)
            right = trust[:, None] * target + pull[:, None] * aim + stiffness * bending @ face
            shape = np.linalg.solve(system, right)
        if stage == 0:
            allowed = _allowed_lips(surface, shape)
    normals = vertex_normals(shape, face_triangles())
    return surface.closest(shape, normals, allowed)


def _allowed_lips(surface: _Surface, shape: Float[np.ndarray, "468 3"]) -> Optional[Bool[np.ndarray, "468 f"]]:
    """For each landmark the triangles it may lie on: those of its own lip, found along the mesh's edges from points
    that are surely on it (the middle of the outer outlines and the skin next to them)."""
    graph = _edge_graph(surface.vertices, surface.triangles)
    reach = []
    for seeds in ((0, 37, 267, 164), (17, 84, 314, 18)):
        found = surface.closest(shape[list(seeds)])[0]
        reach.append(dijkstra(graph, indices=np.unique(surface.triangles[found]), min_only=True))
    upper = (reach[0] < reach[1])[surface.triangles].sum(axis=1) >= 2
    sides = _lip_sides()
    allowed = np.ones((NUM_SURFACE, len(surface.triangles)), bool)
    allowed[sides > 0] = upper
    allowed[sides < 0] = ~upper
    return allowed


def _irises(corners: np.ndarray, weights: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Irises have no skin to lie on: they go along with the eye's outer corner, which hardly moves."""
    order = [33] * 5 + [263] * 5
    return corners[order], weights[order]


def place_irises(points: Float[np.ndarray, "478 3"]) -> Float[np.ndarray, "478 3"]:
    """A shape whose irises lie between the corners of its eyes as they do on the mean face."""
    face = mean_face()
    result = points.copy()
    for eye, irises in ((0, slice(473, 478)), (1, slice(468, 473))):
        result[irises] = eye_centers(points)[eye] + face[irises] - eye_centers(face)[eye]
    return result
