"""What is needed beside the scripts: pages, benchmarks and records of the project."""
