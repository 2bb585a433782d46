// Nothing of the driver's interface is needed in a kernel.
#pragma once
