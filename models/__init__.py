"""What is computed: images, encoders, projections, metrics, and the registry that versions them.

Imports neither Beam, Airflow nor Elasticsearch, and reads no settings: everything comes in as an argument.
"""
