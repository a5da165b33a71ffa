"""What people see: magics and their panels, and the command line. Views read run directories and call core."""
