"""Start a Dataflow worker with Elasticsearch's API key, which is in neither the job nor the image.

Dataflow hands a worker no environment, and what a job's graph holds can be read by whoever sees the job. So the image says
only where the key is kept: in the secret of Secret Manager that ELASTICSEARCH_API_KEY_SECRET names, as
projects/PROJECT/secrets/NAME/versions/latest. The workers' service account reads it. Unset, there is no key.
"""

import os
import sys

BEAM = "/opt/apache/beam/boot"


def main() -> None:
    """Read the key, and become Beam's own program for a worker."""
    if secret := os.environ.get("ELASTICSEARCH_API_KEY_SECRET"):
        from google.cloud.secretmanager import SecretManagerServiceClient

        answer = SecretManagerServiceClient().access_secret_version(name=secret)
        os.environ["LENS_ELASTICSEARCH_API_KEY"] = answer.payload.data.decode().strip()
    os.execv(BEAM, [BEAM, *sys.argv[1:]])  # noqa: S606  no shell is wanted


if __name__ == "__main__":
    main()
