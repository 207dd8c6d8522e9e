"""What a stage minimises: labels alone, or a teacher's outputs as well."""
