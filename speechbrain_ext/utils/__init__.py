"""What every other folder may use: errors, files, configuration, jobs, processes."""
