"""The bill of materials of a bundle, `sbom.cdx.json`: CycloneDX 1.6 with a model card, by CycloneDX's own library.

It lists every file with its SHA-256 and its licence, and what must be installed beside it. Equal bundles have equal
bills: the serial number is made of the hashes, and no time is told.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from edgevit.bundle.guide import RELEASE, RUNNER_NEEDS, Guide, licence_of
from edgevit.schema.manifest import BundleFile, Manifest
from edgevit.util import strict_json

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

SBOM = "sbom.cdx.json"
OWN = "Apache-2.0"
# Licences by how a path begins, the longest that fits; WEIGHTS: that of the weights. `Guide.licences` adds to it.
WEIGHTS = "weights"
LICENCES: Mapping[str, str] = {
    "": WEIGHTS,
    "runner/": OWN,
    "example/": OWN,
    "README.md": OWN,
    "requirements.txt": OWN,
    "report.": OWN,
}
TEXTS = "licences/"  # the texts themselves are under no licence of their own
RUNNER_LICENCES = {"numpy": "BSD-3-Clause", "pillow": "MIT-CMU"}
SERIAL_OF = uuid.UUID("6f0d7c52-6d3a-5d0e-9a35-3c1f8e1f7b0a")  # ours: what hashes of files are names in
_FIRST = "model"


def sbom(manifest: Manifest, guide: Guide) -> str:
    """Return the bill of materials of a bundle that holds the manifest's files beside it."""
    from cyclonedx.model.bom import Bom
    from cyclonedx.output.json import JsonV1Dot6

    model, files, needed = _model(manifest), _files(manifest, guide), _needed(manifest, guide)
    bom = Bom(components=[*files, *needed], serial_number=_serial(manifest))
    bom.metadata.component = model
    bom.metadata.tools.components.add(_tool(manifest))
    bom.register_dependency(model, [*files, *needed])
    data = json.loads(JsonV1Dot6(bom).output_as_string())
    # What the library cannot leave away, and what it does not have yet.
    data["metadata"].pop("timestamp", None)
    data["metadata"]["component"]["modelCard"] = _card(manifest)
    return strict_json.dumps(data)


def _serial(manifest: Manifest) -> uuid.UUID:
    return uuid.uuid5(SERIAL_OF, "\n".join(f"{file.sha256} {file.path}" for file in manifest.files))


def _model(manifest: Manifest) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=_FIRST,
        name=_plain(manifest.name),
        version=manifest.recipe.weights_sha256[:12] or None,
        description=_plain(f"{manifest.recipe.model}, compiled for {manifest.target.description}"),
        licenses=_licences(licence_of(manifest.origin)),
        properties=_properties({f"edgevit:origin:{key}": value for key, value in manifest.origin.items()}),
    )


def _files(manifest: Manifest, guide: Guide) -> list[Component]:
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    licences = {**LICENCES, **guide.licences}
    return [
        Component(
            type=ComponentType.FILE,
            bom_ref=f"file:{file.path}",
            name=file.path,
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
            licenses=_licences(_licence(file, licences, manifest)),
        )
        for file in manifest.files
    ]


def _licence(file: BundleFile, licences: Mapping[str, str], manifest: Manifest) -> str:
    if file.path.startswith(TEXTS):
        return ""
    found = licences[max((begin for begin in licences if file.path.startswith(begin)), key=len)]
    return licence_of(manifest.origin) if found == WEIGHTS else found


def _needed(manifest: Manifest, guide: Guide) -> list[Component]:
    """Return the packages that `requirements.txt` asks for, which are not shipped."""
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    found = []
    wanted = {package: manifest.tools.get(package, "") for package in guide.packages}
    wanted |= {need.partition(">")[0]: "" for need in RUNNER_NEEDS}
    for package, told in wanted.items():
        release = RELEASE.match(told)
        version = release[0] if release else None
        found.append(
            Component(
                type=ComponentType.LIBRARY,
                bom_ref=f"needs:{package}",
                name=package,
                version=version,
                licenses=_licences({**RUNNER_LICENCES, **guide.packages}[package]),
                purl=PackageURL(type="pypi", name=package, version=version),
                properties=_properties({"edgevit:shipped": "false"}),
            )
        )
    return found


def _tool(manifest: Manifest) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    version = manifest.tools.get("edgevit")
    return Component(
        type=ComponentType.APPLICATION, bom_ref="edgevit", name="edgevit", version=version, licenses=_licences(OWN)
    )


def _licences(stated: str) -> Iterable[License]:
    """Return an SPDX licence or expression where it is one, what was stated where not, nothing where nothing was."""
    from cyclonedx.contrib.license.factories import LicenseFactory

    stated = _plain(stated).strip()
    return [LicenseFactory().make_from_string(stated)] if stated else []


def _properties(values: Mapping[str, str]) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=_plain(key), value=_plain(value)) for key, value in values.items()]


def _card(manifest: Manifest) -> dict[str, Any]:
    """Return CycloneDX's model card: what the model takes and gives, what it was judged on, and its limits."""
    recipe = manifest.recipe
    logits = next(output for output in manifest.outputs if output.name == "logits")
    inputs = [f"{manifest.input.name}: {manifest.input.dtype} {list(manifest.input.shape)}, RGB pixels, not normalised"]
    inputs += [f"{manifest.effort.name}: float32 scalar"] if manifest.effort else []
    metrics = [
        {
            "type": f"{row.metric} with the {row.against} model" if row.metric == "agreement" else row.metric,
            "value": f"{row.value:.6g}",
            "slice": f"{row.model}, {row.images} images",
            "confidenceInterval": {"lowerBound": f"{row.low:.6g}", "upperBound": f"{row.high:.6g}"},
        }
        for row in manifest.accuracy
    ]
    limits = [f"{claim.name} not verified: {_plain(claim.summary)}" for claim in manifest.claims if claim.held is None]
    return {
        "modelParameters": {
            "task": "image classification" if logits.kind == "scores" else "image features",
            "architectureFamily": "Vision Transformer",
            "modelArchitecture": _plain(recipe.model),
            "datasets": [
                {
                    "type": "dataset",
                    "name": _plain(recipe.calibration),
                    "description": f"{recipe.calibration_images} images that quantization was calibrated on",
                }
            ],
            "inputs": [{"format": text} for text in inputs],
            "outputs": [
                {"format": f"{output.name}: {output.dtype} {list(output.shape)}, {_plain(output.meaning)}"}
                for output in manifest.outputs
            ],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {"technicalLimitations": limits},
    }


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
