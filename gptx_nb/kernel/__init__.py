"""The kernel toolkit: a kernelspec with the magics loaded, a provisioner that gives each kernel a GPU, and kernelspecs
bound to a device and to default settings. Trains nothing."""
